"""The memory that training takes, by formula; the tests hold it to what a small model is measured to take.

In mixed precision (an activation of 2 bytes) some values stay in fp32 as autocast keeps them: the residual stream, what
norms read, what the flow head's norms give, and tokens. What kernels and the allocator take besides is `MARGIN`.
"""

from __future__ import annotations

from dataclasses import replace

from vidchat.model.responder import Responder
from vidchat.model.set_causal import SetCausalTransformer
from vidchat.model.spatial import set_sizes
from vidchat.model.transformer import Shape
from vidchat.profiling.cost import MASKED, SETS, Sizes, Workload, parameters

FULL = 4  # bytes of a value in fp32
# Measured over formula, at most, in two training steps on an H100 in bf16-mixed: of model=base, all blocks recomputed
# and all chunks in the spatial part (benchmarks/gpu.py), 44 GB where the formula says 41.9; of the model that
# benchmarks/nova.py compares, at NOVA's full shapes, 34.0 where it says 30.3.
MARGIN = 1.12


def training_bytes(model: Responder, work: Workload) -> float:
    """Bytes that one training step moves at least: weights in bf16 forward and backward, gradients, AdamW and the
    average in fp32, activations written once and read once."""
    count = sum(parameters(model).values())
    optimizer = 4 * (1 + 3 + 3 + 2)  # gradient read; weight and both moments read and written; the average as well
    return count * (2 * 2 + 4 + optimizer) + 2 * activation_bytes(model, work, 2)


def activation_bytes(model: Responder, work: Workload, width: int = 4, recompute: bool = False) -> float:
    """Bytes that autograd keeps between forward and backward.

    Of a block, for each token: 4 D + 4 mlp_width + 3 heads head_dim values, and 3 kv_heads head_dim for each that is a
    key, and where heads share keys, their copies; of the flow head, for each token and time (4 blocks + 5) width, for
    each draw (6 blocks + 3) width; of the depth transformer's logits, two values each. A stack that recomputes keeps D
    values for each block, and all of one block at a time.

    Args:
        model: The responder.
        work: Its clips.
        width: Bytes of a value that autocast does not keep in fp32: 4, or 2 in mixed precision.
        recompute: As if every stack recomputed its blocks, see `Shape`.
    """
    sizes, clip = Sizes.of(model, work), work.chunks
    kept = min(clip * work.batch, model.objective.spatial_chunks or clip * work.batch)
    every = model.spatial is None or isinstance(model.spatial, SetCausalTransformer)
    predicted = sizes.fine if every else round(sizes.fine * MASKED)
    tokens = work.batch * (work.text + sizes.chunk * (work.turns + clip))
    stacks = [(model.backbone.shape, tokens, tokens)]  # with the tokens that come in and those that are keys
    total = 0.0
    if model.depth is not None and model.code_shape is not None:
        steps = work.batch * clip * sizes.codec_frames * sizes.books
        stacks.append((model.depth.transformer.shape, steps, steps))
        total += FULL * steps * 2 * model.code_shape.vocabulary
    if model.spatial is not None:
        if isinstance(model.spatial, SetCausalTransformer):
            known = kept * (sizes.chunk + sizes.fine - set_sizes(sizes.fine, SETS)[-1])
            asked = kept * sizes.fine, known
        else:
            known = kept * (sizes.chunk + sizes.fine - predicted)
            asked = (kept * (sizes.chunk + sizes.fine),) * 2
        stacks.append((model.spatial.encoder.shape, known, known))
        stacks.append((model.spatial.decoder.shape, *asked))
    total += kept * predicted * _flow_bytes(model, width)
    if recompute:
        stacks = [(replace(shape, recompute=True), tokens, keys) for shape, tokens, keys in stacks]
    total += sum(shape.layers * _kept_bytes(shape, tokens, keys, width) for shape, tokens, keys in stacks)
    again = [_block_bytes(shape, tokens, keys, width) for shape, tokens, keys in stacks if shape.recompute]
    return total + max(again, default=0)


def _flow_bytes(model: Responder, width: int) -> int:
    """Of one token that is predicted."""
    flow = model.flow.shape
    of_time = flow.width * (flow.blocks * (FULL + 3 * width) + FULL + 4 * width) + 256 * FULL
    of_draw = flow.width * (flow.blocks * (2 * FULL + 4 * width) + 2 * FULL + width) + 4 * model.flow.token_dim * FULL
    return flow.times * of_time + flow.draws * of_draw


def _kept_bytes(shape: Shape, tokens: int, readable: int, width: int) -> int:
    """Of one block, until the backward pass."""
    return FULL * tokens * shape.width if shape.recompute else _block_bytes(shape, tokens, readable, width)


def _block_bytes(shape: Shape, tokens: int, readable: int, width: int) -> int:
    copies = 2 * (shape.heads - shape.kv_heads) if shape.heads > shape.kv_heads else 0
    normal = FULL + 2 * width  # queries and keys are normalised in full precision
    of_key = shape.head_dim * (shape.kv_heads * normal + copies * width)
    of_token = 2 * (FULL + width) * shape.width + 4 * width * shape.mlp_width + normal * shape.heads * shape.head_dim
    return tokens * of_token + readable * of_key


def peak_training_bytes(
    model: Responder, work: Workload, width: int = 4, average: bool = True, recompute: bool = False
) -> float:
    """Peak memory of a training step in bytes: weights, both moments, the average, and the larger of gradients and
    activations, which are freed while gradients come to be; in mixed precision autocast's copies of the weights, too.

    Args:
        model: The responder.
        work: Its clips.
        width: Bytes of an activation that autocast does not keep in fp32.
        average: Whether an average of the weights is kept.
        recompute: As if every stack recomputed its blocks, see `Shape`.
    """
    count = sum(parameters(model).values())
    copies = width * count if width < FULL else 0
    return count * (16 if average else 12) + max(4 * count, activation_bytes(model, work, width, recompute) + copies)
