"""The whole model: training and generation side by side.

Sequence: [conditions] [step 0: the reference] [step 1: heard 1, said 1] [step 2: heard 2, said 2] ..., where a step
holds the tokens of whoever has a chunk there (`vidchat.layout`). The backbone's outputs at said t, or at the still
before a turn, predict said t+1, and whether said t is its turn's last chunk. Inside a chunk, audio comes before video:
the depth transformer predicts the codes; the spatial transformer, given these codes, fills in the visual tokens set by
set; the flow head denoises each token. The finished chunk is fed back: its latents and its codes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidchat.batch import UNKNOWN, ChunkBatch
from vidchat.conditions.base import Conditioning
from vidchat.model.cache import KeyValueCache
from vidchat.model.chunks import ChunkEmbedding, PatchUpsample, TokenShapes
from vidchat.model.condition_encoder import HEARD, ConditionEncoder, ConditionTokens, Keeps
from vidchat.model.depth import DepthTransformer
from vidchat.model.flow import FlowHead, FlowShape
from vidchat.model.generation_state import Chunk, ChunkSampling, GenerationState
from vidchat.model.graphs import CapturedLoops
from vidchat.model.mask import BlockCausal
from vidchat.model.masked import MaskedTransformer
from vidchat.model.noise import NoiseInjection, draw_hidden_chunks
from vidchat.model.objective import Objective
from vidchat.model.sequence import StepTokens
from vidchat.model.set_causal import SetCausalTransformer
from vidchat.model.step_embedding import StepEmbedding
from vidchat.model.transformer import Shape, Transformer
from vidchat.model.video_head import HeadInputs, VideoHead
from vidchat.registry import register


@register("responder")
class Responder(nn.Module):
    """Generates the responder's audio and video, chunk by chunk, on one clock with what is heard of the initiator.

    Args:
        tokens: Shapes of the tokenizers' outputs; without codes, the model has no audio.
        backbone: Sizes of the LLM-style transformer over chunks.
        flow: Sizes of the flow head.
        spatial: Sizes of the spatial transformer; with `None`, the flow head reads the backbone's outputs.
        depth: Sizes of the depth transformer; required when there are codes.
        conditions: Conditions, and whether the model hears the initiator.
        patch: Side of a visual token, in latents.
        ratio: r, the backbone's visual patch over the spatial transformer's, per side.
        heard_ratio: Patch of heard video over the backbone's patch, per side.
        noise: sigma_max of the noise injection; `None` disables it.
        objective: Weights of the losses, and the chunks that they are computed on.
        set_causal: Whether the spatial transformer is set-causal (`vidchat.model.set_causal`).
        sampling: Default sampling settings of the model.
        window: Number of earlier steps that a step sees in generation; dialogues in training are about as long.
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
        heard_ratio: int = 2,
        noise: float | None = 0.3,
        objective: Objective | None = None,
        set_causal: bool = False,
        sampling: ChunkSampling | None = None,
        window: int = 64,
    ) -> None:
        super().__init__()
        latent, codes = tokens.latent, tokens.codes
        if (codes is None) != (depth is None):
            raise ValueError("a model has both codes and a depth transformer, or neither; set model.depth accordingly")
        self.latent, self.code_shape, self.patch, self.ratio = latent, codes, patch, ratio
        self.heard_ratio, self.window = heard_ratio, window
        self.objective, self.sampling = objective or Objective(), sampling or ChunkSampling()
        token_dim = latent.channels * patch**2
        self.conditions = ConditionEncoder(conditions or Conditioning(), backbone.width, tokens)
        heard_dim = token_dim * (ratio * heard_ratio) ** 2 if self.conditions.hears else None
        self.embed = ChunkEmbedding(backbone.width, token_dim * ratio**2, codes, heard_dim)
        self.backbone = Transformer(backbone)
        self.end = nn.Linear(backbone.width, 1)
        self.noise = NoiseInjection(backbone.width, noise) if noise else None
        self.steps = StepEmbedding(self.embed, self.noise, tokens, patch * ratio, heard_ratio)
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
        """Computes the losses of next-chunk prediction with teacher forcing, on every chunk of the responder.

        Args:
            batch: Dialogues of n said columns, with codes and ends.
            count_seed: Seed of the number of visual tokens predicted per chunk. The micro-batches of one optimizer step
                share it, so that their losses can be weighted by their chunks. `None` uses the global generator.

        Returns:
            `loss` to minimise, its terms `video`, `audio` (nats per code) and `end` (nats per chunk), and `accuracy_k`
            of codebook k, all of them means over the said chunks.
        """
        if self.depth is not None and batch.codes is None:
            raise ValueError("the model has audio but the batch has no codes; check that the data has audio tracks")
        weight = batch.targets.flatten().float()
        chosen = self.objective.draw_chunks(weight)
        latents = self._with_own_chunks(batch, chosen, count_seed) if self._resamples() else batch.latents
        history, levels = self._noisy_history(latents)
        outputs = self.run_backbone(batch, history, levels)
        inputs = self._head_inputs(batch, outputs, history, count_seed)
        targets, audio = batch.latents[:, 1:].flatten(0, 1), inputs
        if chosen is not None:
            inputs, targets = inputs.select(chosen), targets[chosen]
        video_weight = weight if chosen is None else weight[chosen]
        video = self.video_head.loss(inputs, targets, self.steps.grid(targets), video_weight)
        end = self._end_loss(outputs[:, 1:], batch)
        losses = {"video": video.detach(), "end": end.detach()}
        entropy = None
        if self.depth is not None and audio.codes is not None:
            entropy, accuracy = self.depth.loss(audio.hidden[:, -self.codec_frames :], audio.codes, weight)
            losses["audio"] = entropy.detach().mean()
            losses |= {f"accuracy_{k}": share for k, share in enumerate(accuracy)}
        return {"loss": self.objective.total(video, entropy, end)} | losses

    def _head_inputs(self, batch: ChunkBatch, outputs: Tensor, history: Tensor, count_seed: int | None) -> HeadInputs:
        """Inputs of the video of all N = B x (n-1) columns 1..n-1, each predicted from the column before it."""
        codes = batch.codes[:, 1:].flatten(0, 1) if self.depth and batch.codes is not None else None
        reference = batch.latents[:, :1].expand_as(history[:, 1:]).flatten(0, 1)
        return HeadInputs(outputs[:, :-1].flatten(0, 1), reference, history[:, :-1].flatten(0, 1), codes, count_seed)

    def _resamples(self) -> bool:
        """Whether this training step continues the model's own chunks, drawn by `Objective.resample`."""
        return self.training and bool(self.objective.resample) and torch.rand(()).item() < self.objective.resample

    @torch.no_grad()
    def _with_own_chunks(self, batch: ChunkBatch, chosen: Tensor | None, count_seed: int | None) -> Tensor:
        """Returns the latents (B, n, C, h, w), in which the chunks before the chosen columns are the model's own.

        Args:
            batch: The batch.
            chosen: (m,) indices among the N = B x (n-1) columns 1..n-1; `None` means all.
            count_seed: See `loss`.
        """
        history, levels = self._noisy_history(batch.latents)
        inputs = self._head_inputs(batch, self.run_backbone(batch, history, levels), history, count_seed)
        size, count = batch.targets.shape
        chosen = torch.arange(size * count, device=history.device) if chosen is None else chosen
        # Column j+1 has index j in its row; the chunk before it is column j, which has index j-1, unless it is a still.
        before, truth = (chosen - 1).clamp(min=0), batch.latents[:, :-1].flatten(0, 1)
        is_chunk = (chosen % count > 0) & batch.targets.flatten()[before]
        own = self.video_head.redraw(inputs.select(before), truth[chosen], self.steps.grid(history))
        own = torch.where(is_chunk[:, None, None, None], own, truth[chosen])
        latents = truth.index_copy(0, chosen, own.to(truth.dtype)).unflatten(0, (size, count))
        return torch.cat([latents, batch.latents[:, -1:]], dim=1)

    def _end_loss(self, outputs: Tensor, batch: ChunkBatch) -> Tensor:
        """Cross-entropy of the ends, summed over the chunks where they are known, per chunk of all."""
        logits = self._end_logits(outputs)
        if batch.ends is None:
            return logits.sum() * 0
        ends, chunks = batch.ends[:, 1:], batch.targets
        known = (ends != UNKNOWN) & chunks
        entropy = F.binary_cross_entropy_with_logits(logits.float(), ends.clamp(min=0).float(), reduction="none")
        return (entropy * known).sum() / chunks.sum().clamp(min=1)

    def _end_logits(self, outputs: Tensor) -> Tensor:
        """Logits (B, n) that a chunk is its turn's last, from outputs (B, n, k, D) at the chunk."""
        return self.end(outputs.mean(2)).squeeze(-1)

    def _noisy_history(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, n, C, h, w) of the said columns as they are read, and their noise levels (B, n).

        Noise is added in training only.
        """
        levels = latents.new_zeros(latents.shape[:2])
        if self.noise and self.training:
            levels = self.noise.draw_levels(latents.shape[0], latents.shape[1], latents.device)
            latents = self.noise.mix(latents, levels)
        return latents, levels

    def run_backbone(self, batch: ChunkBatch, history: Tensor | None = None, levels: Tensor | None = None) -> Tensor:
        """Returns the backbone's outputs (B, n, k, D) at the k tokens of each said column, in one pass.

        Args:
            batch: The batch, as for `loss`.
            history: Latents (B, n, C, h, w) of the said columns as they are read; by default those of the batch, with
                noise in training.
            levels: Noise levels (B, n) of the history.
        """
        if history is None or levels is None:
            history, levels = self._noisy_history(batch.latents)
        device, dropout = history.device, self.objective.code_dropout
        hidden_codes = None
        if self.training:
            keeps: Keeps = self.conditions.draw_keeps(batch.size, device)
            hidden_codes = draw_hidden_chunks(batch.size, history.shape[1], dropout, device) if dropout else None
        else:
            keeps = self.conditions.keep_all(torch.ones(batch.size, dtype=torch.bool, device=device))
        conditions = self.conditions(batch, self.embed, keeps)
        said_as_read = replace(batch, latents=history)
        steps = self.steps(said_as_read, levels, conditions.end, keeps.get(HEARD), hidden_codes)
        outputs = self._run(conditions, steps, self._mask(conditions, steps))
        index = steps.said.flatten(1)[..., None].expand(-1, -1, outputs.shape[-1])
        return outputs.gather(1, index).unflatten(1, steps.said.shape[1:])

    # Generation

    def start(
        self, batch: ChunkBatch, window: int | None = None, guidance: float = 1.0, undo: int = 0
    ) -> GenerationState:
        """Reads the conditions and step 0, the reference, into a new cache.

        Args:
            batch: Conditions and reference (`ChunkBatch.start`); other columns are ignored.
            window: Number of earlier steps that a step sees, besides the conditions and step 0; `None` is the model's
                own.
            guidance: Scale of classifier-free guidance; other than 1, a copy of the batch is appended that has no
                conditions and does not hear.
            undo: Number of steps that can be taken back (`KeyValueCache.take_back`).
        """
        keep = torch.ones(batch.size, dtype=torch.bool, device=batch.latents.device)
        reference = batch.latents[:, 0]
        if guidance != 1:
            batch, keep = batch.repeat(2), torch.cat([keep, ~keep])
        keeps = self.conditions.keep_all(keep)
        conditions = self.conditions(batch, self.embed, keeps)
        still = ChunkBatch.start(batch.latents[:, 0])
        steps = self.steps(still, batch.latents.new_zeros(batch.size, 1), conditions.end, None)
        mask, shape = self._mask(conditions, steps), self.backbone.shape
        heard = self.steps.heard_tokens(reference) if self.conditions.hears else 0
        window = self.window if window is None else window
        cache = KeyValueCache(shape.layers, mask.visible, heard, steps.tokens.shape[1], window, undo)
        hidden = self._run(conditions, steps, mask, cache)
        origin = conditions.end.double()
        return GenerationState(cache, origin, 0, self.steps.grid(reference), reference, hidden, reference)

    def read_step(
        self,
        state: GenerationState,
        said: Chunk | None = None,
        heard: Chunk | None = None,
        noise_level: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> GenerationState:
        """Reads the next step into the cache; its outputs predict the responder's chunk of the step after it.

        Args:
            state: State after the step before; its cache is written to.
            said: The responder's chunk of this step, or the still of the turn that begins after it (without codes).
            heard: The initiator's chunk of this step.
            noise_level: Level of the noise injection on a said chunk; stills have none.
            generator: Source of that noise.

        Raises:
            ValueError: Something is heard and the model does not listen; or a said chunk lacks its codes.
        """
        if said is not None and self.depth is not None and said.codes is None and not said.still:
            raise ValueError("a said chunk of a model with audio has codes; only a still has none")
        if heard is not None and not self.conditions.hears:
            raise ValueError("this model does not listen: it was trained without the initiator's clip")
        if heard is not None and not self.steps.has_tokens(heard.latents, heard.codes):
            heard = None
        step, size = state.step + 1, len(state.reference)
        if said is None and heard is None:
            state.cache.open_step(step, None, said=False)
            return replace(state, step=step, hidden=None, last=None, end=None)
        columns, levels = self._step_columns(state, said, heard), state.reference.new_zeros(size, 1)
        if said is not None and not said.still and self.noise:
            levels += noise_level
            columns = replace(columns, latents=self.noise.mix(columns.latents, levels, generator))
        copies = len(state.origin) // size
        keep = torch.arange(len(state.origin), device=state.origin.device) < size
        tokens = self.steps(columns.repeat(copies), levels.repeat(copies, 1), state.origin, keep[:, None])
        heard_tokens = tokens.tokens.shape[1] - tokens.said[0].numel()
        visible = None if heard is None else tokens.visible[:, :heard_tokens]
        state.cache.open_step(step, visible, said is not None)
        beyond = max(0, step - state.cache.window - 1)  # steps by which step 0 is farther than the window
        if beyond or state.cache.moved:
            shift = state.origin.new_full((1, 1, 1), beyond * self.latent.steps)
            state.cache.move_pinned(self.backbone.angles(F.pad(shift, (0, 2))))
        outputs = self.backbone(tokens.tokens, tokens.positions, cache=state.cache)
        if said is None:
            return replace(state, step=step, hidden=None, last=None, end=None)
        hidden = outputs[:, heard_tokens:]
        end = None if said.still else self._end_logits(hidden[:size, None])[:, 0].float().sigmoid()
        return replace(state, step=step, hidden=hidden, last=columns.latents[:, 0], end=end)

    def generate_chunk(
        self,
        state: GenerationState,
        sampling: ChunkSampling,
        generator: torch.Generator | None = None,
        graphs: CapturedLoops | None = None,
    ) -> Chunk:
        """Draws the responder's chunk of the next step: its audio, then its video.

        Args:
            state: State after a step with a said chunk or a still.
            sampling: Sampling settings.
            generator: Source of all randomness.
            graphs: Captured loops of the depth transformer and the flow head, reused from chunk to chunk on CUDA.

        Returns:
            Latents (B, C, h, w) and codes (B, F, K), or `None` without audio.
        """
        if state.hidden is None or state.last is None:
            raise ValueError("the last step has neither a chunk of the responder nor a still, so nothing can follow it")
        codes = None
        if self.depth is not None:
            audio = state.hidden[:, -self.codec_frames :]
            codes = self.depth.sample(audio, sampling.codes, sampling.guidance, generator, graphs)
        reference, last, known_codes = state.reference, state.last, codes
        if sampling.guidance != 1:  # both halves are given the past chunks and the new codes
            reference, last = reference.repeat(2, 1, 1, 1), last.repeat(2, 1, 1, 1)
            known_codes = None if codes is None else codes.repeat(2, 1, 1)
        inputs = HeadInputs(state.hidden, reference, last, known_codes)
        return Chunk(self.video_head.sample(inputs, state.grid, sampling, generator, graphs), codes)

    def _step_columns(self, state: GenerationState, said: Chunk | None, heard: Chunk | None) -> ChunkBatch:
        """The chunks of one step as a batch of at most one column for each person."""
        size, device = len(state.reference), state.reference.device
        step = torch.full((size, 1), state.step + 1, device=device)
        one = torch.ones(size, 1, dtype=torch.bool, device=device)
        latents = state.reference[:, None] if said is None else cast(Tensor, said.latents)[:, None]
        batch = ChunkBatch(latents, step, one & (said is not None and said.still), one)
        if said is None:
            batch = batch.map(lambda value: value[:, :0])
        elif said.codes is not None:
            batch = replace(batch, codes=_column(said.codes))
        if heard is None:
            return batch
        return replace(
            batch,
            heard_latents=_column(heard.latents),
            heard_codes=_column(heard.codes),
            heard_steps=step,
            heard_video=one & (heard.latents is not None),
            heard_audio=one & (heard.codes is not None),
        )

    # Shared by both

    def _mask(self, conditions: ConditionTokens, steps: StepTokens) -> BlockCausal:
        """Mask of the conditions followed by steps, each of which is one block."""
        size, first = len(steps.steps), len(conditions.blocks)  # larger than every block of the conditions
        blocks = conditions.blocks.to(steps.steps.device, non_blocking=True).expand(size, -1)
        return BlockCausal(
            torch.cat([blocks, first + steps.steps], dim=1),
            torch.cat([conditions.visible, steps.visible], dim=1),
        )

    def _run(
        self, conditions: ConditionTokens, steps: StepTokens, mask: BlockCausal, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Backbone outputs (B, N, D) at the tokens of steps, which follow the conditions."""
        return self.backbone(
            torch.cat([conditions.tokens, steps.tokens], dim=1),
            torch.cat([conditions.positions, steps.positions], dim=1),
            mask,
            cache=cache,
            outputs=slice(conditions.tokens.shape[1], None),
        )


def _column(value: Tensor | None) -> Tensor | None:
    return None if value is None else value[:, None]
