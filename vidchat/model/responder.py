"""The whole model: training and generation side by side.

Sequence: [condition] [chunk 0 = reference] [chunk 1] ... [chunk T]. The backbone reads chunks 0..T-1, and its outputs
at chunk t-1 predict chunk t. Inside chunk t audio comes first, then frame: the depth transformer emits the codes;
the spatial transformer, knowing them, fills in the visual tokens set by set; the flow head draws each token. What is
fed back is the finished chunk: its latents and its codes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from vidchat.batch import INITIATOR, RESPONDER, ChunkBatch
from vidchat.conditions.base import Conditioning
from vidchat.model.cache import KeyValueCache
from vidchat.model.chunks import (
    ChunkEmbedding,
    PatchUpsample,
    TokenShapes,
    chunk_positions,
    patchify,
)
from vidchat.model.conditions import ConditionEncoder, ConditionTokens
from vidchat.model.depth import DepthTransformer
from vidchat.model.flow import FlowHead, FlowShape
from vidchat.model.generation_state import ChunkSampling, GenerationState
from vidchat.model.graphs import CapturedLoops
from vidchat.model.mask import BlockCausal
from vidchat.model.masked import MaskedTransformer
from vidchat.model.noise import NoiseInjection, draw_hidden_chunks
from vidchat.model.objective import Objective
from vidchat.model.set_causal import SetCausalTransformer
from vidchat.model.transformer import Shape, Transformer
from vidchat.model.video_head import HeadInputs, VideoHead
from vidchat.registry import register


@register("responder")
class Responder(nn.Module):
    """Answers an initiator's clip with audio and frame, chunk by chunk.

    Args:
        tokens: What the tokenizers give; without codes it is a model without audio.
        backbone: The LLM-style transformer over chunks.
        flow: The flow head.
        spatial: The spatial transformer; `None` lets the flow head read the backbone's output.
        depth: The depth transformer; needed when there are codes.
        conditions: What the answer is conditioned on.
        patch: Side of a visual token in latents.
        ratio: r, the backbone's visual patch over the spatial transformer's, per side.
        noise: sigma_max of the noise injection; `None` is none.
        objective: How the losses are weighed, and on what.
        set_causal: Whether the spatial transformer is set-causal: see `vidchat.model.set_causal`.
        sampling: How its chunks are drawn where nothing else is asked for.
    """

    def __init__(
        self,
        tokens: TokenShapes,
        backbone: Shape,
        flow: FlowShape,
        spatial: Shape | None = None,
        depth: Shape | None = None,
        conditions: Conditioning | None = None,
        patch: int = 1,
        ratio: int = 1,
        noise: float | None = 0.3,
        objective: Objective | None = None,
        set_causal: bool = False,
        sampling: ChunkSampling | None = None,
    ) -> None:
        super().__init__()
        latent, codes = tokens.latent, tokens.codes
        if (codes is None) != (depth is None):
            raise ValueError("a model has both codes and a depth transformer, or neither")
        self.latent, self.code_shape, self.patch, self.ratio = latent, codes, patch, ratio
        self.objective, self.sampling = objective or Objective(), sampling or ChunkSampling()
        token_dim = latent.channels * patch**2
        self.embed = ChunkEmbedding(backbone.width, token_dim * ratio**2, codes)
        self.conditions = ConditionEncoder(conditions or Conditioning(), backbone.width, tokens)
        self.backbone = Transformer(backbone)
        self.noise = NoiseInjection(backbone.width, noise) if noise else None
        self.depth = DepthTransformer(depth, backbone.width, codes) if depth and codes else None
        kind = SetCausalTransformer if set_causal else MaskedTransformer
        self.spatial = kind(spatial, backbone.width, token_dim, ratio) if spatial else None
        self.direct = None if spatial else PatchUpsample(backbone.width, backbone.width, ratio)
        self.flow = FlowHead(token_dim, (spatial or backbone).width, flow)
        embed_codes = self.embed.codes if codes else None
        self.frame = VideoHead(self.spatial, self.direct, self.flow, embed_codes, patch, ratio, latent.steps)

    @property
    def codec_frames(self) -> int:
        """F, codec frames in a chunk; 0 for the model without audio."""
        return self.code_shape.codec_frames if self.code_shape else 0

    # Training

    def loss(self, batch: ChunkBatch, count_seed: int | None = None) -> dict[str, Tensor]:
        """Losses of next-chunk prediction with teacher forcing.

        Args:
            batch: Latents (B, T+1, C, h, w), codes (B, T, F, K), masks and conditions.
            count_seed: Of how many visual tokens of each chunk are predicted. Batches whose gradients are added up,
                weighted by their chunks, need the same one; `None` draws the number with all else.

        Returns:
            `loss` to minimise, its parts `video` and `audio` (nats per code), and `accuracy_k` of each codebook, each
            a mean over the batch's chunks (padding left out).
        """
        history, levels = self._history(batch)
        hidden = self.read(batch, history, levels).flatten(0, 1)
        codes = batch.codes.flatten(0, 1) if self.depth and batch.codes is not None else None
        if self.depth is not None and codes is None:
            raise ValueError("the model has audio but the batch has no codes; check that the data has audio tracks")
        weight = batch.chunk_mask.flatten().float()
        reference = batch.latents[:, :1].expand_as(history).flatten(0, 1)
        given = HeadInputs(hidden, reference, history.flatten(0, 1), codes, count_seed)
        targets = batch.latents[:, 1:].flatten(0, 1)
        video = self._video_loss(given, targets, weight)
        if self.depth is None or codes is None:
            return {"loss": self.objective.total(video, None), "video": video.detach()}
        entropy, right = self.depth.loss(hidden[:, -self.codec_frames :], codes, weight)
        losses = {"loss": self.objective.total(video, entropy), "video": video.detach()}
        losses["audio"] = entropy.detach().mean()
        return losses | {f"accuracy_{k}": share for k, share in enumerate(right)}

    def _video_loss(self, given: HeadInputs, targets: Tensor, weight: Tensor) -> Tensor:
        """Of all N = B x T chunks, or of some."""
        grid, chosen = self._grid(targets), self.objective.draw_chunks(weight)
        if chosen is None:
            return self.frame.loss(given, targets, grid, weight)
        return self.frame.loss(given.of(chosen), targets[chosen], grid, weight[chosen])

    def _history(self, batch: ChunkBatch) -> tuple[Tensor, Tensor]:
        """Latents (B, T, C, h, w) of chunks 0..T-1 as they are read, in training with noise, and its levels (B, T)."""
        latents = batch.latents[:, :-1]
        levels = latents.new_zeros(latents.shape[:2])
        if self.noise and self.training:
            levels = self.noise.draw_levels(latents.shape[0], latents.shape[1], latents.device)
            latents = self.noise.mix(latents, levels)
        return latents, levels

    def read(self, batch: ChunkBatch, history: Tensor | None = None, levels: Tensor | None = None) -> Tensor:
        """Backbone outputs (B, T, N, D) at chunks 0..T-1, all at once; those at t-1 predict chunk t.

        Args:
            batch: As for `loss`.
            history: (B, T, C, h, w) and the `levels` (B, T) of the noise in it; drawn if not given.
            levels: See above.
        """
        if history is None or levels is None:
            history, levels = self._history(batch)
        size, chunks = history.shape[:2]
        grid = self._grid(history)
        codes = batch.codes[:, :-1] if self.depth and batch.codes is not None else None
        hidden = None
        if self.training and self.objective.code_dropout:
            hidden = draw_hidden_chunks(size, chunks - 1, self.objective.code_dropout, history.device)
        own = self._embed(history, codes, levels, starts=True, hidden_codes=hidden)
        condition = self._condition(batch)
        tokens = own.shape[2]
        positions = self._positions(condition.end, torch.arange(chunks, device=history.device), grid)
        x = torch.cat([condition.tokens, own.flatten(1, 2)], dim=1)
        blocks, visible = self._layout(condition, chunks, tokens)
        mask = BlockCausal(blocks, visible)
        positions = torch.cat([condition.positions, positions.flatten(1, 2)], dim=1)
        outputs = self.backbone(x, positions, mask, wanted=slice(condition.tokens.shape[1], None))
        return outputs.unflatten(1, (chunks, tokens))

    # Generation

    def prefill(self, batch: ChunkBatch, window: int, guidance: float = 1.0) -> GenerationState:
        """Read the condition and the reference, `batch.latents[:, :1]`.

        Args:
            batch: Conditions and reference; its answer, if it has one, is not looked at.
            window: Chunks that a chunk sees before itself, besides the condition and the reference.
            guidance: With a scale other than 1, a second, unconditioned half rides along.
        """
        keep = torch.ones(batch.size, dtype=torch.bool, device=batch.latents.device)
        if guidance != 1:
            batch, keep = batch.repeat(2), torch.cat([keep, ~keep])
        reference = batch.latents[:, :1]
        grid = self._grid(reference)
        history = self._embed(reference, None, reference.new_zeros(batch.size, 1), starts=True)
        condition = self._condition(batch, keep)
        blocks, visible = self._layout(condition, 1, history.shape[2])
        cache = KeyValueCache(
            self.backbone.shape.layers,
            pinned=len(blocks),
            chunk=history.shape[2],
            window=window,
            key_mask=None if bool(visible.all()) else visible,
        )
        places = self._positions(condition.end, torch.zeros(1, device=reference.device), grid).flatten(1, 2)
        hidden = self.backbone(
            torch.cat([condition.tokens, history.flatten(1, 2)], dim=1),
            torch.cat([condition.positions, places], dim=1),
            BlockCausal(blocks, visible),
            cache=cache,
            wanted=slice(condition.tokens.shape[1], None),
        )
        own = reference[: batch.size if guidance == 1 else batch.size // 2, 0]
        return GenerationState(hidden, cache, places, 0, grid, reference=own, last=own)

    def append_chunk(
        self,
        state: GenerationState,
        latents: Tensor,
        codes: Tensor | None,
        noise_level: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> GenerationState:
        """Read one finished chunk, only that chunk's tokens, and so get ready for the next.

        Args:
            reading: Where the backbone stands; its cache is written to.
            latents: (B, C, h, w) of the chunk.
            codes: (B, F, K) of the chunk.
            noise_level: Level of the noise injection.
            generator: Source of that noise.
        """
        latents, levels = latents[:, None], latents.new_full((latents.shape[0], 1), noise_level)
        if self.noise:
            latents = self.noise.mix(latents, levels, generator)
        own_codes = None if codes is None else codes[:, None]
        state = self._read(state, self._embed(latents, own_codes, levels, starts=False))
        return replace(state, last=latents[:, 0])

    def append_heard_chunk(self, state: GenerationState, latents: Tensor, codes: Tensor | None) -> GenerationState:
        """Read one chunk of the initiator's next clip, after an answer or while it is being said.

        The unconditional half of guidance does not hear it, and forgets what was said before but for the reference, as
        in training, where all turns are dropped at once.

        Args:
            reading: Where the backbone stands; its cache is written to.
            latents: (B, C, h, w) of the chunk.
            codes: (B, F, K) of the chunk.
        """
        if not self.conditions.hears:
            raise ValueError("this model does not listen: it was trained without the initiator's clip")
        own_codes = None if codes is None else codes[:, None]
        levels = latents.new_zeros(latents.shape[0], 1)
        heard = self._read(state, self._embed(latents[:, None], own_codes, levels, starts=False, role=INITIATOR))
        if heard.hidden.shape[0] > latents.shape[0]:
            heard.cache.forget(slice(latents.shape[0], None))
        return heard

    def restart(self, state: GenerationState, reference: Tensor) -> GenerationState:
        """Read the reference (B, C, h, w) as chunk 0 of the next answer, after what has been heard."""
        levels = reference.new_zeros(reference.shape[0], 1)
        state = self._read(state, self._embed(reference[:, None], None, levels, starts=True))
        return replace(state, reference=reference, last=reference)

    def _read(self, state: GenerationState, tokens: Tensor) -> GenerationState:
        """Read one more chunk, (B, 1, N, D)."""
        copies = state.hidden.shape[0] // tokens.shape[0]
        tokens = tokens.flatten(1, 2)
        places = state.places.clone()
        places[..., 0] += (state.chunk + 1) * self.latent.steps
        hidden = self.backbone(tokens if copies == 1 else tokens.repeat(copies, 1, 1), places, cache=state.cache)
        return replace(state, hidden=hidden, chunk=state.chunk + 1)

    def generate_chunk(
        self,
        state: GenerationState,
        sampling: ChunkSampling,
        generator: torch.Generator | None = None,
        graphs: CapturedLoops | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Draw the next chunk, audio first, then frame.

        Args:
            reading: Where the backbone stands; with guidance, its conditioned half comes first.
            sampling: How.
            generator: Source of all randomness.
            graphs: Of the depth transformer's and the flow head's loops, kept from chunk to chunk; used on CUDA.

        Returns:
            Latents (B, C, h, w) and codes (B, F, K), or `None` without audio.
        """
        codes = None
        if self.depth is not None:
            audio = state.hidden[:, -self.codec_frames :]
            codes = self.depth.sample(audio, sampling.codes, sampling.guidance, generator, graphs)
        reference, last, known = state.reference, state.last, codes
        if sampling.guidance != 1:  # both halves know the past and what is said
            reference, last = reference.repeat(2, 1, 1, 1), last.repeat(2, 1, 1, 1)
            known = None if codes is None else codes.repeat(2, 1, 1)
        given = HeadInputs(state.hidden, reference, last, known)
        return self.frame.sample(given, state.grid, sampling, generator, graphs), codes

    # Shared by both

    def _grid(self, latents: Tensor) -> tuple[int, int]:
        """Rows and columns of the backbone's visual tokens for latents (..., h, w)."""
        side = self.patch * self.ratio
        height, width = latents.shape[-2:]
        if height % side or width % side:
            raise ValueError(
                f"a latent of {height} x {width} does not divide into patches of {side} (model.patch * model.ratio)"
            )
        return height // side, width // side

    def _embed(
        self,
        latents: Tensor,
        codes: Tensor | None,
        levels: Tensor,
        starts: bool,
        hidden_codes: Tensor | None = None,
        role: int = RESPONDER,
    ) -> Tensor:
        """Chunks as backbone tokens (B, T, N, D). With `starts`, the first is chunk 0, which has no codes."""
        roles = torch.full(latents.shape[:2], role, device=latents.device)
        visual = self.embed.embed_visual(patchify(latents, self.patch * self.ratio), roles)
        if self.noise:
            visual = visual + self.noise.embed_levels(levels).unsqueeze(2)
        if not self.codec_frames:
            return visual
        audio = []
        if starts:
            audio.append(self.embed.start_tokens(len(latents)))
        if codes is not None and codes.shape[1]:
            audio.append(self.embed.embed_codes(codes, roles[:, : codes.shape[1]], hidden_codes))
        return torch.cat([visual, torch.cat(audio, dim=1).to(visual.dtype)], dim=2)

    def _condition(self, batch: ChunkBatch, keep: Tensor | None = None) -> ConditionTokens:
        return self.conditions(batch, self.embed, self.latent, self.patch * self.ratio, keep)

    def _positions(self, origin: Tensor, chunks: Tensor, grid: tuple[int, int]) -> Tensor:
        return chunk_positions(origin, chunks, grid, self.latent, self.codec_frames)

    def _layout(self, condition: ConditionTokens, chunks: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Blocks (N,) and visibility (B, N) of the whole sequence; each chunk is one block after the condition."""
        device = condition.tokens.device
        first = int(condition.blocks.shape[0])  # a block more than the condition has, whatever its blocks are
        own = first + torch.arange(chunks).repeat_interleave(tokens)
        seen = torch.ones(len(condition.tokens), len(own), dtype=torch.bool, device=device)
        return torch.cat([condition.blocks, own]), torch.cat([condition.visible, seen], dim=1)
