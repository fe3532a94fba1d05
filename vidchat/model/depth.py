"""The depth transformer: the codes of one chunk, frame after frame, codebook after codebook.

After the RQ-Transformer (arXiv 2203.01941) and Moshi (arXiv 2410.00037), over F x K codes instead of K.
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

MOST = 100  # of temperatures and guidance: far beyond what is of use, and products stay finite


@register("code_sampling")
@dataclass(frozen=True)
class CodeSampling:
    """How codes are drawn.

    Attributes:
        temperature: In [0, `MOST`], divides the logits; 0 takes the most likely code.
        top_k: Keeps the k most likely codes; 0 keeps all.
        top_p: In (0, 1]: keeps the most likely codes that make up this probability; 1 keeps all.

    Raises:
        ValueError: a value is out of its range.
    """

    temperature: float = 0.6
    top_k: int = 30
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_ranges(
            "sampling.codes",
            self,
            temperature=(is_number(self.temperature, 0, MOST), f"a number in [0, {MOST}]"),
            top_k=(is_count(self.top_k, 0), "a whole number >= 0"),
            top_p=(is_number(self.top_p, 0, 1) and self.top_p > 0, "a number in (0, 1]"),
        )


def check_ranges(section: str, settings: object, **ranges: tuple[bool, str]) -> None:
    """Raises `ValueError` for the first setting that is not valid, with its key and its range.

    Args:
        section: Where in a config the settings are.
        settings: The object that holds them.
        ranges: By attribute, whether its value is valid, and the range in words.
    """
    for name, (valid, wanted) in ranges.items():
        if not valid:
            raise ValueError(f"{section}.{name} must be {wanted}, got {getattr(settings, name)!r}")


def is_number(value: object, low: float, high: float) -> bool:
    """Whether a value is a number in [low, high]; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def is_count(value: object, low: int, high: float = math.inf) -> bool:
    """Whether a value is a whole number in [low, high]."""
    return isinstance(value, int) and is_number(value, low, high)


def sample_code(logits: Tensor, sampling: CodeSampling, exponential: Tensor) -> Tensor:
    """Draw one code from each row of logits (..., V).

    Args:
        logits: (..., V).
        sampling: How.
        exponential: (..., V) independent draws of the exponential distribution; not read at temperature 0.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / sampling.temperature
    if sampling.top_k:
        kept = logits.topk(min(sampling.top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kept, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        above = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # probability of all codes likelier than this
        drop = torch.zeros_like(above, dtype=torch.bool).scatter(-1, order, above >= sampling.top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    # The Gumbel-max trick, in its exponential form, as in torch.multinomial, but without its wait for the device.
    return (logits.softmax(-1) / exponential).argmax(-1)


class DepthTransformer(nn.Module):
    """Predicts F x K codes of a chunk from the backbone's outputs at its F audio places.

    Args:
        shape: Of the stack.
        condition_width: D of the backbone.
        codes: F, K, V.
    """

    def __init__(self, shape: Shape, condition_width: int, codes: CodeShape) -> None:
        super().__init__()
        self.codes = codes
        steps = codes.codec_frames * codes.codebooks
        self.condition = nn.Linear(condition_width, shape.width)
        self.previous = nn.Embedding(codes.codebooks * codes.vocabulary + 1, shape.width)  # the last one starts
        self.place = nn.Parameter(torch.randn(steps, shape.width) * 0.02)
        self.transformer = Transformer(shape)
        self.heads = nn.Parameter(torch.randn(codes.codebooks, shape.width, codes.vocabulary) * shape.width**-0.5)

    def _positions(self, count: int, device: torch.device) -> Tensor:
        return torch.arange(count, device=device).float()[None, :, None].expand(1, -1, 3)

    def forward(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Logits of p(code | hidden, codes before it) for all codes at once, given the true ones.

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
        """Cross-entropy and accuracy of each codebook.

        Args:
            hidden: (N, F, D).
            codes: (N, F, K) targets.
            weight: (N,) 1 for chunks that count, 0 for padding.

        Returns:
            (K,) nats per code, and (K,) shares of codes that are the most likely one.
        """
        logits = self(hidden, codes)
        entropy = F.cross_entropy(logits.float().flatten(0, 2), codes.flatten(), reduction="none").view(codes.shape)
        right = (logits.detach().argmax(-1) == codes).float()
        share = (weight / weight.sum().clamp(min=1))[:, None]
        # Sums, not matrix products: autocast would run those, and so the loss, in half precision.
        return (share * entropy.mean(1)).sum(0), (share * right.mean(1)).sum(0)

    def sample(
        self,
        hidden: Tensor,
        sampling: CodeSampling,
        guidance: float = 1.0,
        generator: torch.Generator | None = None,
        graphs: CapturedLoops | None = None,
    ) -> Tensor:
        """Draw the codes of N chunks.

        Args:
            hidden: (N, F, D); with guidance (2N, F, D), conditioned ones first.
            sampling: Temperature and cut-offs.
            guidance: Scale of classifier-free guidance on the logits; 1 is none.
            generator: Source of randomness.
            graphs: With these, on CUDA, the whole loop is one launch.

        Returns:
            (N, F, K) int64.
        """
        count = len(hidden) if guidance == 1 else len(hidden) // 2
        steps = self.codes.codec_frames * self.codes.codebooks if sampling.temperature else 0
        exponential = torch.empty(steps, count, self.codes.vocabulary, device=hidden.device)
        for one in exponential:  # as in a loop that draws on the way: some generators give other numbers at once
            one.exponential_(generator=generator)
        if graphs is not None:
            return graphs.run(self.unroll, (hidden, exponential), sampling, guidance)
        return self.unroll(hidden, exponential, sampling, guidance)

    def unroll(self, hidden: Tensor, exponential: Tensor, sampling: CodeSampling, guidance: float) -> Tensor:
        """Code after code, each told the one before, from exponential draws (F x K, N, V); none at temperature 0.

        Draws nothing and waits for nothing.
        """
        books, vocabulary = self.codes.codebooks, self.codes.vocabulary
        count = len(hidden) if guidance == 1 else len(hidden) // 2
        # What does not depend on the codes, once for all steps.
        fixed = self.condition(hidden).unsqueeze(2) + self.place.unflatten(0, (-1, books))
        fixed = fixed.flatten(1, 2).unflatten(0, (-1, count)).unbind(2)  # of each step, (1 or 2, N, D)
        *embeddings, previous = self.previous.weight.split(vocabulary)
        angles = self.transformer.angles(self._positions(len(fixed), hidden.device))
        stack = IncrementalTransformer(self.transformer, angles)
        drawn: list[Tensor] = []
        for step, own in enumerate(fixed):
            output = stack.read((own + previous).flatten(0, 1))
            logits = output @ self.heads[step % books].to(output.dtype)
            if guidance != 1:
                conditioned, free = logits.chunk(2)
                logits = free.lerp(conditioned, guidance)
            drawn.append(sample_code(logits, sampling, exponential[step] if sampling.temperature else exponential))
            previous = F.embedding(drawn[-1], embeddings[step % books])
        return torch.stack(drawn, dim=1).unflatten(1, (-1, books))
