"""The responder's stages: `pretrain_visual`, `pretrain_av`, `sft_dyadic`. What tells them apart is their config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidchat.batch import ChunkBatch
from vidchat.model.responder import Responder
from vidchat.release import TOKENIZERS, export_release
from vidchat.release.format import rename_weights
from vidchat.tokenizers.audio import AudioCodec
from vidchat.tokenizers.text import TextTokenizer
from vidchat.tokenizers.thinker import Thinker
from vidchat.tokenizers.video import VideoTokenizer
from vidchat.training.module import TrainingModule
from vidchat.training.schedule import OptimizerSettings


class ResponderModule(TrainingModule):
    """Trains a responder on batches of tokens.

    Args:
        responder: What is trained.
        video_vae: Its tokenizers: not trained, only kept for samples and for the release.
        audio_codec: See above.
        text_tokenizer: See above.
        optimizer: How it is trained.
        seed: Of everything random in training.
        release_dtype: In which the release's weights are stored, e.g. `float16` for a small one.
        thinker: What made the features, if the responder is conditioned on a thinker's; named in the release.
    """

    def __init__(
        self,
        responder: Responder,
        video_vae: VideoTokenizer,
        audio_codec: AudioCodec,
        text_tokenizer: TextTokenizer,
        optimizer: OptimizerSettings | None = None,
        seed: int = 0,
        release_dtype: str = "float32",
        thinker: Thinker | None = None,
    ) -> None:
        super().__init__(responder, optimizer, seed)
        self.release_dtype: torch.dtype = getattr(torch, release_dtype)
        # In a tuple, so that they are not submodules: not moved, trained, averaged or saved with the responder.
        self._tools = (video_vae, audio_codec, text_tokenizer)
        self._thinker = thinker

    @property
    def responder(self) -> Responder:
        """The network under its own name."""
        assert isinstance(self.network, Responder)
        return self.network

    @property
    def video_vae(self) -> VideoTokenizer:
        return self._tools[0]

    @property
    def audio_codec(self) -> AudioCodec:
        return self._tools[1]

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the tokenizers that the responder is trained with."""
        tools: list[Any] = list(self._tools)
        named = dict(zip(TOKENIZERS, tools, strict=True)) | ({"thinker": self._thinker} if self._thinker else {})
        return {name: tool.fingerprint() for name, tool in named.items()}

    def count(self, batch: ChunkBatch) -> Tensor:
        return batch.chunk_mask.sum()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["fingerprints"] = self.fingerprints

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = rename_weights(checkpoint["state_dict"], "network.")
        checkpoint["ema"]["average"] = rename_weights(checkpoint["ema"]["average"])
        super().on_load_checkpoint(checkpoint)

    def export(self, directory: Path, config: dict[str, Any]) -> None:
        """Writes a release folder with the averaged weights."""
        with self.ema.swapped():
            export_release(directory, self.responder, config, *self._tools, self.release_dtype, self._thinker)
