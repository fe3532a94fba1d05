"""The whole model: training and generation side by side.

Sequence: [conditions] [chunk 0 = reference] [chunk 1] ... [chunk T]. The backbone reads chunks 0..T-1, and its outputs
at chunk t-1 predict chunk t. Inside chunk t, audio comes before video: the depth transformer predicts the codes; the
spatial transformer, given these codes, fills in the visual tokens set by set; the flow head denoises each token. The
finished chunk is fed back: its latents and its codes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from vidchat.batch import INITIATOR, RESPONDER, ChunkBatch
from vidchat.conditions.base import Conditioning
from vidchat.model.cache import KeyValueCache
from vidchat.model.chunks import ChunkEmbedding, PatchUpsample, TokenShapes, chunk_positions, patchify
from vidchat.model.condition_encoder import ConditionEncoder, ConditionTokens
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
    """Generates the responder's audio and video, chunk by chunk, in answer to an initiator's clip.

    Args:
        tokens: Shapes of the tokenizers' outputs; without codes, the model has no audio.
        backbone: Sizes of the LLM-style transformer over chunks.
        flow: Sizes of the flow head.
        spatial: Sizes of the spatial transformer; with `None`, the flow head reads the backbone's outputs.
        depth: Sizes of the depth transformer; required when there are codes.
        conditions: Conditions of the answer.
        patch: Side of a visual token, in latents.
        ratio: r, the backbone's visual patch over the spatial transformer's, per side.
        noise: sigma_max of the noise injection; `None` disables it.
        objective: Weights of the losses, and the chunks that they are computed on.
        set_causal: Whether the spatial transformer is set-causal (`vidchat.model.set_causal`).
        sampling: Default sampling settings of the model.
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
            raise ValueError("a model has both codes and a depth transformer, or neither; set model.depth accordingly")
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
        self.video_head = VideoHead(self.spatial, self.direct, self.flow, embed_codes, patch, ratio, latent.steps)

    @property
    def codec_frames(self) -> int:
        """F, the number of codec frames in a chunk; 0 for a model without audio."""
        return self.code_shape.codec_frames if self.code_shape else 0

    # Training

    def loss(self, batch: ChunkBatch, count_seed: int | None = None) -> dict[str, Tensor]:
        """Computes the losses of next-chunk prediction with teacher forcing.

        Args:
            batch: Latents (B, T+1, C, h, w), codes (B, T, F, K), masks and conditions.
            count_seed: Seed of the number of visual tokens predicted per chunk. The micro-batches of one optimizer step
                share it, so that their losses can be weighted by their chunks. `None` uses the global generator.

        Returns:
            `loss` to minimise, its terms `video` and `audio` (nats per code), and `accuracy_k` of codebook k, all of
            them means over the chunks that are not padding.
        """
        if self.depth is not None and batch.codes is None:
            raise ValueError("the model has audio but the batch has no codes; check that the data has audio tracks")
        history, levels = self._noisy_history(batch)
        hidden = self.run_backbone(batch, history, levels).flatten(0, 1)
        codes = batch.codes.flatten(0, 1) if self.depth and batch.codes is not None else None
        weight = batch.chunk_mask.flatten().float()
        reference = batch.latents[:, :1].expand_as(history).flatten(0, 1)
        inputs = HeadInputs(hidden, reference, history.flatten(0, 1), codes, count_seed)
        video = self._video_loss(inputs, batch.latents[:, 1:].flatten(0, 1), weight)
        losses = {"video": video.detach()}
        entropy = None
        if self.depth is not None and codes is not None:
            entropy, accuracy = self.depth.loss(hidden[:, -self.codec_frames :], codes, weight)
            losses["audio"] = entropy.detach().mean()
            losses |= {f"accuracy_{k}": share for k, share in enumerate(accuracy)}
        return {"loss": self.objective.total(video, entropy)} | losses

    def _video_loss(self, inputs: HeadInputs, targets: Tensor, weight: Tensor) -> Tensor:
        """Video loss of all N = B x T chunks, or of those that the objective draws."""
        grid, chosen = self._grid(targets), self.objective.draw_chunks(weight)
        if chosen is None:
            return self.video_head.loss(inputs, targets, grid, weight)
        return self.video_head.loss(inputs.select(chosen), targets[chosen], grid, weight[chosen])

    def _noisy_history(self, batch: ChunkBatch) -> tuple[Tensor, Tensor]:
        """Latents (B, T, C, h, w) of chunks 0..T-1 as the backbone reads them, and their noise levels (B, T).

        Noise is added in training only.
        """
        latents = batch.latents[:, :-1]
        levels = latents.new_zeros(latents.shape[:2])
        if self.noise and self.training:
            levels = self.noise.draw_levels(latents.shape[0], latents.shape[1], latents.device)
            latents = self.noise.mix(latents, levels)
        return latents, levels

    def run_backbone(self, batch: ChunkBatch, history: Tensor | None = None, levels: Tensor | None = None) -> Tensor:
        """Returns the backbone's outputs (B, T, N, D) at chunks 0..T-1 in one pass; those at t-1 predict chunk t.

        Args:
            batch: The batch, as for `loss`.
            history: Latents (B, T, C, h, w) of chunks 0..T-1 as they are read; by default those of the batch, with
                noise in training.
            levels: Noise levels (B, T) of the history.
        """
        if history is None or levels is None:
            history, levels = self._noisy_history(batch)
        (size, chunks), grid = history.shape[:2], self._grid(history)
        codes = batch.codes[:, :-1] if self.depth and batch.codes is not None else None
        hidden_codes = None
        if self.training and self.objective.code_dropout:
            hidden_codes = draw_hidden_chunks(size, chunks - 1, self.objective.code_dropout, history.device)
        tokens = self._embed(history, codes, levels, with_reference=True, hidden_codes=hidden_codes)
        condition = self._encode_conditions(batch)
        positions = self._positions(condition.end, torch.arange(chunks, device=history.device), grid)
        return self._run(condition, tokens, positions, self._mask(condition, tokens)).unflatten(1, (chunks, -1))

    # Generation

    def prefill(self, batch: ChunkBatch, window: int, guidance: float = 1.0) -> GenerationState:
        """Reads the conditions and the reference, `batch.latents[:, :1]`, into a new cache.

        Args:
            batch: Conditions and reference; later chunks are ignored.
            window: Number of earlier chunks that a chunk sees, besides the conditions and the reference.
            guidance: Scale of classifier-free guidance; other than 1, an unconditional copy of the batch is appended.
        """
        keep = torch.ones(batch.size, dtype=torch.bool, device=batch.latents.device)
        answers = batch.size
        if guidance != 1:
            batch, keep = batch.repeat(2), torch.cat([keep, ~keep])
        reference = batch.latents[:, :1]
        grid = self._grid(reference)
        tokens = self._embed(reference, None, reference.new_zeros(batch.size, 1), with_reference=True)
        condition = self._encode_conditions(batch, keep)
        positions = self._positions(condition.end, torch.zeros(1, device=reference.device), grid)
        mask = self._mask(condition, tokens)
        cache = KeyValueCache(
            self.backbone.shape.layers,
            pinned=len(mask.blocks),
            chunk=tokens.shape[2],
            window=window,
            key_mask=None if bool(mask.visible.all()) else mask.visible,
        )
        hidden = self._run(condition, tokens, positions, mask, cache)
        own = reference[:answers, 0]
        return GenerationState(hidden, cache, positions.flatten(1, 2), 0, grid, reference=own, last=own)

    def generate_chunk(
        self,
        state: GenerationState,
        sampling: ChunkSampling,
        generator: torch.Generator | None = None,
        graphs: CapturedLoops | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Draws the next chunk: its audio, then its video.

        Args:
            state: State of generation; with guidance, its conditional half comes first.
            sampling: Sampling settings.
            generator: Source of all randomness.
            graphs: Captured loops of the depth transformer and the flow head, reused from chunk to chunk on CUDA.

        Returns:
            Latents (B, C, h, w) and codes (B, F, K), or `None` without audio.
        """
        codes = None
        if self.depth is not None:
            audio = state.hidden[:, -self.codec_frames :]
            codes = self.depth.sample(audio, sampling.codes, sampling.guidance, generator, graphs)
        reference, last, known_codes = state.reference, state.last, codes
        if sampling.guidance != 1:  # both halves are given the past chunks and the new codes
            reference, last = reference.repeat(2, 1, 1, 1), last.repeat(2, 1, 1, 1)
            known_codes = None if codes is None else codes.repeat(2, 1, 1)
        inputs = HeadInputs(state.hidden, reference, last, known_codes)
        return self.video_head.sample(inputs, state.grid, sampling, generator, graphs), codes

    def append_chunk(
        self,
        state: GenerationState,
        latents: Tensor,
        codes: Tensor | None,
        noise_level: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> GenerationState:
        """Reads one finished chunk of the answer into the cache; its outputs predict the next chunk.

        Args:
            state: State of generation; its cache is written to.
            latents: (B, C, h, w) of the chunk.
            codes: (B, F, K) of the chunk; `None` without audio.
            noise_level: Level of the noise injection.
            generator: Source of that noise.
        """
        latents, levels = latents[:, None], latents.new_full((latents.shape[0], 1), noise_level)
        if self.noise:
            latents = self.noise.mix(latents, levels, generator)
        chunk_codes = None if codes is None else codes[:, None]
        state = self._append(state, self._embed(latents, chunk_codes, levels, with_reference=False))
        return replace(state, last=latents[:, 0])

    def append_heard_chunk(self, state: GenerationState, latents: Tensor, codes: Tensor | None) -> GenerationState:
        """Reads one chunk of the initiator's next clip into the cache.

        The unconditional half of guidance does not see it and forgets all earlier chunks but the reference, as in
        training, where all turns are dropped together.

        Args:
            state: State of generation; its cache is written to.
            latents: (B, C, h, w) of the chunk.
            codes: (B, F, K) of the chunk; `None` without audio.
        """
        if not self.conditions.hears:
            raise ValueError("this model does not listen: it was trained without the initiator's clip")
        chunk_codes = None if codes is None else codes[:, None]
        levels = latents.new_zeros(latents.shape[0], 1)
        tokens = self._embed(latents[:, None], chunk_codes, levels, with_reference=False, role=INITIATOR)
        state = self._append(state, tokens)
        if state.hidden.shape[0] > latents.shape[0]:
            state.cache.forget(slice(latents.shape[0], None))
        return state

    def restart(self, state: GenerationState, reference: Tensor) -> GenerationState:
        """Reads the reference (B, C, h, w) into the cache as chunk 0 of the next answer."""
        levels = reference.new_zeros(reference.shape[0], 1)
        state = self._append(state, self._embed(reference[:, None], None, levels, with_reference=True))
        return replace(state, reference=reference, last=reference)

    def _append(self, state: GenerationState, tokens: Tensor) -> GenerationState:
        """Runs the backbone on the tokens (B, 1, N, D) of one more chunk, given the cache."""
        copies = state.hidden.shape[0] // tokens.shape[0]
        tokens = tokens.flatten(1, 2)
        positions = state.positions.clone()
        positions[..., 0] += (state.chunk + 1) * self.latent.steps
        hidden = self.backbone(tokens if copies == 1 else tokens.repeat(copies, 1, 1), positions, cache=state.cache)
        return replace(state, hidden=hidden, chunk=state.chunk + 1)

    # Shared by both

    def _grid(self, latents: Tensor) -> tuple[int, int]:
        """Rows and columns of the backbone's visual tokens for latents (..., h, w)."""
        side = self.patch * self.ratio
        height, width = latents.shape[-2:]
        if height % side or width % side:
            raise ValueError(
                f"a latent of {height} x {width} does not divide into patches of {side} (model.patch * model.ratio); "
                f"choose another size or patch"
            )
        return height // side, width // side

    def _embed(
        self,
        latents: Tensor,
        codes: Tensor | None,
        levels: Tensor,
        with_reference: bool,
        hidden_codes: Tensor | None = None,
        role: int = RESPONDER,
    ) -> Tensor:
        """Backbone tokens (B, T, N, D) of chunks. With the reference, the first is chunk 0, which has no codes."""
        roles = torch.full(latents.shape[:2], role, device=latents.device)
        visual = self.embed.embed_visual(patchify(latents, self.patch * self.ratio), roles)
        if self.noise:
            visual = visual + self.noise.embed_levels(levels).unsqueeze(2)
        if not self.codec_frames:
            return visual
        audio = []
        if with_reference:
            audio.append(self.embed.start_tokens(len(latents)))
        if codes is not None and codes.shape[1]:
            audio.append(self.embed.embed_codes(codes, roles[:, : codes.shape[1]], hidden_codes))
        return torch.cat([visual, torch.cat(audio, dim=1).to(visual.dtype)], dim=2)

    def _encode_conditions(self, batch: ChunkBatch, keep: Tensor | None = None) -> ConditionTokens:
        return self.conditions(batch, self.embed, self.latent, self.patch * self.ratio, keep)

    def _positions(self, origin: Tensor, chunks: Tensor, grid: tuple[int, int]) -> Tensor:
        return chunk_positions(origin, chunks, grid, self.latent, self.codec_frames)

    def _mask(self, condition: ConditionTokens, tokens: Tensor) -> BlockCausal:
        """Mask of the conditions followed by chunks (B, T, N, D), each of which is one block."""
        size, chunks, per_chunk = tokens.shape[:3]
        first = len(condition.blocks)  # larger than every block of the conditions
        blocks = first + torch.arange(chunks).repeat_interleave(per_chunk)
        visible = torch.ones(size, chunks * per_chunk, dtype=torch.bool, device=tokens.device)
        return BlockCausal(torch.cat([condition.blocks, blocks]), torch.cat([condition.visible, visible], dim=1))

    def _run(
        self,
        condition: ConditionTokens,
        tokens: Tensor,
        positions: Tensor,
        mask: BlockCausal,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Backbone outputs (B, T * N, D) at chunks (B, T, N, D), which follow the conditions."""
        return self.backbone(
            torch.cat([condition.tokens, tokens.flatten(1, 2)], dim=1),
            torch.cat([condition.positions, positions.flatten(1, 2)], dim=1),
            mask,
            cache=cache,
            outputs=slice(condition.tokens.shape[1], None),
        )
