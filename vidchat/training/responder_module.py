"""The responder's stages: `pretrain_visual`, `pretrain_av`, `sft_dyadic`, which differ by their configs only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidchat.batch import ChunkBatch
from vidchat.model.responder import Responder
from vidchat.release import TOKENIZERS, export_release
from vidchat.release.format import FORMAT
from vidchat.tokenizers.audio import AudioCodec
from vidchat.tokenizers.text import TextTokenizer
from vidchat.tokenizers.thinker import Thinker
from vidchat.tokenizers.video import VideoTokenizer
from vidchat.training.module import TrainingModule
from vidchat.training.schedule import OptimizerSettings


class ResponderModule(TrainingModule):
    """Trains a responder on batches of tokens.

    Args:
        responder: Responder to train.
        video_vae: Video tokenizer; like the other tokenizers it is not trained, but used for samples and the release.
        audio_codec: Audio codec.
        text_tokenizer: Text tokenizer.
        optimizer: Settings of the optimizer.
        seed: Seed of all randomness in training.
        release_dtype: Type of the stored weights of the release, e.g. `float16` for a small file.
        thinker: Thinker that made the features, if the responder is conditioned on them; the release names it.
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
        # In a tuple they are not submodules, so they are not moved, trained, averaged or saved with the responder.
        self._tokenizers = (video_vae, audio_codec, text_tokenizer)
        self._thinker = thinker

    @property
    def responder(self) -> Responder:
        """The network under its own name."""
        assert isinstance(self.network, Responder)
        return self.network

    @property
    def video_vae(self) -> VideoTokenizer:
        return self._tokenizers[0]

    @property
    def audio_codec(self) -> AudioCodec:
        return self._tokenizers[1]

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the tokenizers that the responder is trained with, by name."""
        tokenizers: dict[str, Any] = dict(zip(TOKENIZERS, self._tokenizers, strict=True))
        tokenizers |= {"thinker": self._thinker} if self._thinker else {}
        return {name: tokenizer.fingerprint() for name, tokenizer in tokenizers.items()}

    def count(self, batch: ChunkBatch) -> Tensor:
        return batch.targets.sum()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["fingerprints"], checkpoint["format"] = self.fingerprints, FORMAT

    def export(self, directory: Path, config: dict[str, Any]) -> None:
        """Writes a release folder with the averaged weights."""
        with self.ema.swapped():
            export_release(directory, self.responder, config, *self._tokenizers, self.release_dtype, self._thinker)
