"""The depth transformer: predicts the codes of one chunk, codec frame after codec frame, codebook after codebook.

As in the RQ-Transformer (arXiv 2203.01941) and Moshi (arXiv 2410.00037), but over F x K codes instead of K.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidchat.model.chunks import CodeShape
from vidchat.model.graphs import CapturedLoops
from vidchat.model.incremental import IncrementalTransformer
from vidchat.model.transformer import Shape, Transformer
from vidchat.registry import register

MAX_SCALE = 100  # limit of temperatures and guidance: far beyond useful values, and products stay finite


@register("code_sampling")
@dataclass(frozen=True)
class CodeSampling:
    """Sampling settings of the codes.

    Attributes:
        temperature: Divisor of the logits, in [0, `MAX_SCALE`]; 0 takes the most likely code.
        top_k: Number of most likely codes to keep; 0 keeps all.
        top_p: Probability in (0, 1] that the most likely codes to keep must reach; 1 keeps all.

    Raises:
        ValueError: A value is out of its range.
    """

    temperature: float = 0.6
    top_k: int = 30
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_ranges(
            "sampling.codes",
            self,
            temperature=(is_number(self.temperature, 0, MAX_SCALE), f"a number in [0, {MAX_SCALE}]"),
            top_k=(is_integer(self.top_k, 0), "a whole number >= 0"),
            top_p=(is_number(self.top_p, 0, 1) and self.top_p > 0, "a number in (0, 1]"),
        )


def check_ranges(section: str, settings: object, **ranges: tuple[bool, str]) -> None:
    """Raises `ValueError` for the first invalid setting, naming its key and its range.

    Args:
        section: Config section of the settings.
        settings: The object that holds the settings.
        ranges: Per attribute, whether its value is valid, and its range in words.
    """
    for name, (valid, allowed) in ranges.items():
        if not valid:
            raise ValueError(f"{section}.{name} must be {allowed}, got {getattr(settings, name)!r}")


def is_number(value: object, low: float, high: float) -> bool:
    """Returns whether a value is a number in [low, high]; booleans are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def is_integer(value: object, low: int, high: float = math.inf) -> bool:
    """Returns whether a value is an integer in [low, high]."""
    return isinstance(value, int) and is_number(value, low, high)


def sample_code(logits: Tensor, sampling: CodeSampling, exponential: Tensor) -> Tensor:
    """Draws codes (...) from logits (..., V).

    Args:
        logits: (..., V).
        sampling: Sampling settings.
        exponential: (..., V) independent draws from the exponential distribution; not read at temperature 0.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / sampling.temperature
    if sampling.top_k:
        least = logits.topk(min(sampling.top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        above = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # total probability of more likely codes
        drop = torch.zeros_like(above, dtype=torch.bool).scatter(-1, order, above >= sampling.top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    # The Gumbel-max trick in its exponential form, as in torch.multinomial, but without waiting for the device.
    return (logits.softmax(-1) / exponential).argmax(-1)


class DepthTransformer(nn.Module):
    """Predicts the F x K codes of a chunk from the backbone's outputs at its F audio tokens.

    Args:
        shape: Sizes of the stack.
        condition_width: D of the backbone.
        codes: Shape of the codes: F, K, V.
    """

    def __init__(self, shape: Shape, condition_width: int, codes: CodeShape) -> None:
        super().__init__()
        self.codes = codes
        steps = codes.codec_frames * codes.codebooks
        self.condition = nn.Linear(condition_width, shape.width)
        self.previous = nn.Embedding(codes.codebooks * codes.vocabulary + 1, shape.width)  # last row: start
        self.place = nn.Parameter(torch.randn(steps, shape.width) * 0.02)
        self.transformer = Transformer(shape)
        self.heads = nn.Parameter(torch.randn(codes.codebooks, shape.width, codes.vocabulary) * shape.width**-0.5)

    def _positions(self, count: int, device: torch.device) -> Tensor:
        return torch.arange(count, device=device).float()[None, :, None].expand(1, -1, 3)

    def forward(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Computes the logits of p(code | hidden, earlier codes) for all codes in one pass, given the true codes.

        Args:
            hidden: (N, F, D) backbone outputs for N chunks.
            codes: (N, F, K) int64.

        Returns:
            (N, F, K, V) logits.
        """
        codec_frames, books, vocabulary = self.codes.codec_frames, self.codes.codebooks, self.codes.vocabulary
        ids = (codes + torch.arange(books, device=codes.device) * vocabulary).flatten(1)
        previous = torch.cat([torch.full_like(ids[:, :1], books * vocabulary), ids[:, :-1]], dim=1)
        inputs = self.condition(hidden).repeat_interleave(books, dim=1) + self.previous(previous) + self.place
        outputs = self.transformer(inputs, self._positions(codec_frames * books, codes.device), causal=True)
        outputs = outputs.unflatten(1, (codec_frames, books))
        return torch.einsum("nfkd,kdv->nfkv", outputs, self.heads.to(outputs.dtype))

    def loss(self, hidden: Tensor, codes: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the cross-entropy and the accuracy of each codebook.

        Args:
            hidden: (N, F, D).
            codes: (N, F, K) targets.
            weight: (N,) weights of the chunks, 0 for padding.

        Returns:
            (K,) nats per code, and (K,) shares of codes whose true value is the most likely one.
        """
        logits = self(hidden, codes)
        entropy = F.cross_entropy(logits.float().flatten(0, 2), codes.flatten(), reduction="none").view(codes.shape)
        correct = (logits.detach().argmax(-1) == codes).float()
        share = (weight / weight.sum().clamp(min=1))[:, None]
        # Sums, not matrix products: autocast would compute those, and so the loss, in half precision.
        return (share * entropy.mean(1)).sum(0), (share * correct.mean(1)).sum(0)

    def sample(
        self,
        hidden: Tensor,
        sampling: CodeSampling,
        guidance: float = 1.0,
        generator: torch.Generator | None = None,
        graphs: CapturedLoops | None = None,
    ) -> Tensor:
        """Draws the codes of N chunks.

        Args:
            hidden: (N, F, D); with guidance (2N, F, D), conditional ones first.
            sampling: Temperature and cut-offs.
            guidance: Scale of classifier-free guidance on the logits; 1 disables it.
            generator: Source of randomness.
            graphs: Captured loops; on CUDA the whole loop is then one launch.

        Returns:
            (N, F, K) int64.
        """
        count = len(hidden) if guidance == 1 else len(hidden) // 2
        steps = self.codes.codec_frames * self.codes.codebooks if sampling.temperature else 0
        exponential = torch.empty(steps, count, self.codes.vocabulary, device=hidden.device)
        for draws in exponential:  # step by step, since some generators give other numbers in one large draw
            draws.exponential_(generator=generator)
        if graphs is not None:
            return graphs.run(self.unroll, (hidden, exponential), sampling, guidance)
        return self.unroll(hidden, exponential, sampling, guidance)

    def unroll(self, hidden: Tensor, exponential: Tensor, sampling: CodeSampling, guidance: float) -> Tensor:
        """Computes the codes (N, F, K) one by one, each given the one before.

        It makes no random draws and never waits for the device.

        Args:
            hidden: (N, F, D); with guidance (2N, F, D), conditional ones first.
            exponential: (F x K, N, V) draws from the exponential distribution; empty at temperature 0.
            sampling: Temperature and cut-offs.
            guidance: Scale of classifier-free guidance on the logits; 1 disables it.
        """
        books, vocabulary = self.codes.codebooks, self.codes.vocabulary
        count = len(hidden) if guidance == 1 else len(hidden) // 2
        # The part of the inputs that does not depend on the codes, once for all steps.
        fixed = self.condition(hidden).unsqueeze(2) + self.place.unflatten(0, (-1, books))
        fixed = fixed.flatten(1, 2).unflatten(0, (-1, count)).unbind(2)  # (1 or 2, N, D) for each step
        *embeddings, previous = self.previous.weight.split(vocabulary)
        angles = self.transformer.angles(self._positions(len(fixed), hidden.device))
        stack = IncrementalTransformer(self.transformer, angles)
        drawn: list[Tensor] = []
        for step, inputs in enumerate(fixed):
            output = stack.step((inputs + previous).flatten(0, 1))
            logits = output @ self.heads[step % books].to(output.dtype)
            if guidance != 1:
                conditional, unconditional = logits.chunk(2)
                logits = unconditional.lerp(conditional, guidance)
            drawn.append(sample_code(logits, sampling, exponential[step] if sampling.temperature else exponential))
            previous = F.embedding(drawn[-1], embeddings[step % books])
        return torch.stack(drawn, dim=1).unflatten(1, (-1, books))
