"""A loaded release: the responder, its tokenizers, and what it was trained with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidchat.build import clock_of
from vidchat.conditions.base import Condition
from vidchat.dialogue import ChunkClock
from vidchat.model.graphs import CapturedLoops
from vidchat.model.responder import Responder
from vidchat.release.format import FILES, ReleaseError
from vidchat.release.model_card import CardDetails, count_parameters, model_card
from vidchat.runtime.hub import upload
from vidchat.tokenizers.audio import AudioCodec
from vidchat.tokenizers.text import TextTokenizer
from vidchat.tokenizers.thinker import Thinker
from vidchat.tokenizers.video import VideoTokenizer


@dataclass
class Release:
    """A trained responder and the tokenizers it was trained with.

    Attributes:
        responder: Responder in evaluation mode.
        video_vae: Video tokenizer.
        audio_codec: Audio codec.
        text_tokenizer: Text tokenizer.
        config: Content of `config.yaml`.
        thinker: Thinker that the responder is conditioned on; `None` without one, or where features are given as
            tensors.
        graphs: CUDA graphs captured in earlier answers, reused in later ones.
        folder: Folder that the release was loaded from; `None` if it was not loaded.
    """

    responder: Responder
    video_vae: VideoTokenizer
    audio_codec: AudioCodec
    text_tokenizer: TextTokenizer
    config: dict[str, Any]
    thinker: Thinker | None = None
    graphs: CapturedLoops = field(default_factory=CapturedLoops)
    folder: Path | None = None

    @property
    def clock(self) -> ChunkClock:
        """Clock of the two tokenizers."""
        return clock_of(self.config["fps"], self.video_vae, self.audio_codec)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames it was trained on."""
        height, width = self.config["size"]
        return height, width

    @property
    def conditions(self) -> dict[str, Condition]:
        """Conditions that the responder reads, by name."""
        return self.responder.conditions.used

    @property
    def hears(self) -> bool:
        """Whether the responder hears the initiator's clip."""
        return self.responder.conditions.hears

    @property
    def allow_portrait(self) -> bool:
        """Whether it was also trained on frames of (width, height)."""
        return bool(self.config.get("allow_portrait", False))

    def model_card(self, name: str, details: CardDetails | None = None) -> str:
        """Returns the text of its model card, see `vidchat.release.model_card`; its commands load it by `name`."""
        networks = {"responder": self.responder, "video_vae": self.video_vae, "audio_codec": self.audio_codec}
        parameters = count_parameters(networks)
        return model_card(self.config, self.clock, parameters, name, details or CardDetails(), self.folder)

    def push_to_hub(
        self, target: str, details: CardDetails | None = None, private: bool = False, api: Any = None
    ) -> str:
        """Uploads its folder and its model card in one commit; returns the URL of the commit.

        Args:
            target: Repository `owner/name`, created if absent; `owner/name@branch` for another branch than `main`.
            details: Facts for the card that the release does not hold.
            private: Whether a new repository is private; otherwise its owner's default holds.
            api: Client, a `huggingface_hub.HfApi`; by default one for the default endpoint.

        Raises:
            ReleaseError: the release was not loaded from a folder.
            HubError, CardError, ResultError: see `vidchat.runtime.hub` and `vidchat.release.model_card`.
        """
        if self.folder is None:
            raise ReleaseError("a release is pushed from its folder; write it with export_release and load the folder")
        return upload(self.folder, target, FILES, self.model_card(target, details), private, api)
