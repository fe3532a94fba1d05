"""The chunks of both people as tokens on the clock: the one layout of training and generation.

Training gives it whole dialogues, generation one step at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vidchat.batch import INITIATOR, RESPONDER, ChunkBatch
from vidchat.model.chunks import (
    ChunkEmbedding,
    TokenShapes,
    audio_positions,
    patchify,
    patchify_padded,
    video_positions,
)
from vidchat.model.noise import NoiseInjection
from vidchat.model.sequence import Columns, StepTokens, in_order


@dataclass(frozen=True)
class StepEmbedding:
    """Embeds the columns of a batch, and lays them on the clock.

    It is not a module: its parts belong to the responder, which holds their parameters under their names.

    Attributes:
        embed: Embedding of chunks.
        noise: Embedding of noise levels; `None` without noise injection.
        shapes: Shapes of the tokenizers' outputs.
        side: Side of the backbone's visual patch, in latents.
        heard_ratio: Patch of heard video over the backbone's patch, per side.
    """

    embed: ChunkEmbedding
    noise: NoiseInjection | None
    shapes: TokenShapes
    side: int
    heard_ratio: int

    def __call__(
        self, batch: ChunkBatch, levels: Tensor, origin: Tensor, keep: Tensor | None, hidden_codes: Tensor | None = None
    ) -> StepTokens:
        """Returns the tokens of the columns of a batch in the order of the clock.

        Args:
            batch: Said columns with the latents as they are read, and heard columns.
            levels: (B, n) noise levels of these latents.
            origin: (B,) position of step 0.
            keep: (B, 1) bool, which dialogues hear; `None` for a model that does not.
            hidden_codes: (B, n) bool, said columns whose codes are hidden.
        """
        said = self._said_columns(batch, levels, origin, hidden_codes)
        if keep is None or not self.has_tokens(batch.heard_latents, batch.heard_codes):
            return in_order(said, None)
        return in_order(said, self._heard_columns(batch, origin, keep))

    def has_tokens(self, latents: Tensor | None, codes: Tensor | None) -> bool:
        """Whether heard chunks have tokens: for a model without audio, those of an unseen talker have none."""
        return latents is not None or (codes is not None and self.shapes.codes is not None)

    @property
    def _codec_frames(self) -> int:
        return self.shapes.codes.codec_frames if self.shapes.codes else 0

    def grid(self, latents: Tensor) -> tuple[int, int]:
        """Rows and columns of the backbone's visual tokens for latents (..., h, w)."""
        height, width = latents.shape[-2:]
        if height % self.side or width % self.side:
            raise ValueError(
                f"a latent of {height} x {width} does not divide into patches of {self.side} (model.patch * "
                f"model.ratio); choose another size or patch"
            )
        return height // self.side, width // self.side

    def _heard_grid(self, latents: Tensor) -> tuple[int, int]:
        """Rows and columns of a heard chunk's visual tokens for latents (..., h, w), padded to whole patches."""
        side = self.side * self.heard_ratio
        return -(-latents.shape[-2] // side), -(-latents.shape[-1] // side)

    def heard_tokens(self, latents: Tensor) -> int:
        """Number of tokens of a heard chunk that is seen and audible."""
        rows, cols = self._heard_grid(latents)
        return rows * cols + self._codec_frames

    def _said_columns(self, batch: ChunkBatch, levels: Tensor, origin: Tensor, hidden_codes: Tensor | None) -> Columns:
        times = self._times(batch.steps, origin)
        positions = video_positions(times, self.grid(batch.latents))
        tokens = self.embed.embed_said(patchify(batch.latents, self.side))
        if self.noise:
            tokens = tokens + self.noise.embed_levels(levels).unsqueeze(2)
        if self.shapes.codes is not None:
            shape = (*batch.steps.shape, self.shapes.codes.codec_frames, self.shapes.codes.codebooks)
            codes = torch.zeros(shape, dtype=torch.long, device=tokens.device) if batch.codes is None else batch.codes
            hidden = batch.stills if hidden_codes is None else batch.stills | hidden_codes
            audio = self.embed.embed_codes(codes, torch.full_like(hidden, RESPONDER, dtype=torch.long), hidden)
            tokens = torch.cat([tokens, audio.to(tokens.dtype)], dim=2)
            positions = torch.cat(
                [positions, audio_positions(times, self.shapes.latent.steps, self._codec_frames)], dim=2
            )
        visible = batch.mask[..., None].expand(tokens.shape[:3])
        return Columns(tokens, positions, batch.steps, batch.mask, visible)

    def _heard_columns(self, batch: ChunkBatch, origin: Tensor, keep: Tensor) -> Columns:
        steps, video, audible = batch.heard_steps, batch.heard_video, batch.heard_audio
        assert steps is not None and video is not None and audible is not None, "they come together"  # noqa: PT018
        times = self._times(steps, origin)
        tokens: list[Tensor] = []
        positions: list[Tensor] = []
        visible: list[Tensor] = []
        if batch.heard_latents is not None:
            tokens.append(self.embed.embed_heard(patchify_padded(batch.heard_latents, self.side * self.heard_ratio)))
            positions.append(video_positions(times, self._heard_grid(batch.heard_latents), self.heard_ratio))
            visible.append(video & keep)
        if batch.heard_codes is not None and self._codec_frames:
            roles = torch.full_like(audible, INITIATOR, dtype=torch.long)
            audio = self.embed.embed_codes(batch.heard_codes, roles)
            tokens.append(audio.to(tokens[0].dtype) if tokens else audio)
            positions.append(audio_positions(times, self.shapes.latent.steps, self._codec_frames))
            visible.append(audible & keep)
        seen = [mask[..., None].expand(part.shape[:3]) for mask, part in zip(visible, tokens, strict=True)]
        joined, places, by_token = (torch.cat(parts, dim=2) for parts in (tokens, positions, seen))
        return Columns(joined, places, steps, video | audible, by_token)

    def _times(self, steps: Tensor, origin: Tensor) -> Tensor:
        """Position (B, n, 3) of the chunks at steps (B, n): their end in time, and their upper left corner."""
        time = steps.to(origin.device)[..., None] * self.shapes.latent.steps
        return origin[:, None, None] + F.pad(time, (0, 2))
