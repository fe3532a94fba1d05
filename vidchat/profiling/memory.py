"""Memory of a training step, by formula; tests compare it with the measured memory of a small model.

In mixed precision (activations of 2 bytes), autocast keeps some values in fp32: the residual stream, the inputs of
norms, the outputs of the flow head's norms, and tokens. `MARGIN` covers what kernels and the allocator take besides.
"""

from __future__ import annotations

from dataclasses import replace

from vidchat.model.responder import Responder
from vidchat.model.set_causal import SetCausalTransformer
from vidchat.model.spatial import set_sizes
from vidchat.model.transformer import Shape
from vidchat.profiling.cost import MASKED, SETS, Sizes, Workload, parameters

FULL = 4  # bytes of a value in fp32
# Largest ratio of measured memory to the formula, in two training steps on an H100 in bf16-mixed with the layout
# of vidchat 0.1.0: model=base with all blocks recomputed (benchmarks/gpu.py), and the model of benchmarks/nova.py at
# the full shapes of NOVA.
MARGIN = 1.12


def training_bytes(model: Responder, work: Workload) -> float:
    """Returns the fewest bytes that a training step moves.

    Weights are read in bf16 forward and backward; gradients, AdamW's moments and the average of the weights are in
    fp32; activations are written once and read once.
    """
    count = sum(parameters(model).values())
    optimizer = 4 * (1 + 3 + 3 + 2)  # reads the gradient; reads and writes the weight, both moments and the average
    return count * (2 * 2 + 4 + optimizer) + 2 * activation_bytes(model, work, 2)


def activation_bytes(model: Responder, work: Workload, width: int = 4, recompute: bool = False) -> float:
    """Returns the bytes that autograd keeps between the forward and the backward pass.

    A block keeps 4 D + 4 mlp_width + 3 heads * head_dim values per token, 3 kv_heads * head_dim values per key, and
    copies of the keys where heads share them. The flow head keeps (4 blocks + 5) width values per token and time, and
    (6 blocks + 3) width values per draw. The depth transformer keeps two values per logit. A stack that recomputes
    keeps D values per token and block, and all values of one block at a time.

    Args:
        model: The responder.
        work: Sizes of the training step.
        width: Bytes of a value that autocast does not keep in fp32: 4, or 2 in mixed precision.
        recompute: Whether every stack recomputes its blocks, see `Shape`.
    """
    sizes = Sizes.of(model, work)
    targets = work.batch * (len(work.columns()[0]) - 1)  # columns that are predicted, and further stills
    drawn = min(targets, model.objective.spatial_chunks or targets)
    predicts_all = model.spatial is None or isinstance(model.spatial, SetCausalTransformer)
    predicted = sizes.fine if predicts_all else round(sizes.fine * MASKED)
    tokens = work.batch * sizes.sample(work)
    stacks = [(model.backbone.shape, tokens, tokens)]  # shape, number of input tokens, number of keys
    total = 0.0
    if model.depth is not None and model.code_shape is not None:
        steps = targets * sizes.codec_frames * sizes.codebooks
        stacks.append((model.depth.transformer.shape, steps, steps))
        total += FULL * steps * 2 * model.code_shape.vocabulary
    if model.spatial is not None:
        if isinstance(model.spatial, SetCausalTransformer):
            known = drawn * (sizes.chunk + sizes.fine - set_sizes(sizes.fine, SETS)[-1])
            decoded = drawn * sizes.fine, known
        else:
            known = drawn * (sizes.chunk + sizes.fine - predicted)
            decoded = (drawn * (sizes.chunk + sizes.fine),) * 2
        stacks.append((model.spatial.encoder.shape, known, known))
        stacks.append((model.spatial.decoder.shape, *decoded))
    total += drawn * predicted * _flow_bytes(model, width)
    if recompute:
        stacks = [(replace(shape, recompute=True), tokens, keys) for shape, tokens, keys in stacks]
    total += sum(shape.layers * _kept_bytes(shape, tokens, keys, width) for shape, tokens, keys in stacks)
    recomputed = [_block_bytes(shape, tokens, keys, width) for shape, tokens, keys in stacks if shape.recompute]
    return total + max(recomputed, default=0)


def _flow_bytes(model: Responder, width: int) -> int:
    """Returns the bytes that the flow head keeps per predicted token."""
    flow = model.flow.shape
    per_time = flow.width * (flow.blocks * (FULL + 3 * width) + FULL + 4 * width) + 256 * FULL
    per_draw = flow.width * (flow.blocks * (2 * FULL + 4 * width) + 2 * FULL + width) + 4 * model.flow.token_dim * FULL
    return flow.times * per_time + flow.draws * per_draw


def _kept_bytes(shape: Shape, tokens: int, keys: int, width: int) -> int:
    """Returns the bytes that a block keeps until the backward pass."""
    return FULL * tokens * shape.width if shape.recompute else _block_bytes(shape, tokens, keys, width)


def _block_bytes(shape: Shape, tokens: int, keys: int, width: int) -> int:
    copies = 2 * (shape.heads - shape.kv_heads) if shape.heads > shape.kv_heads else 0
    normal = FULL + 2 * width  # queries and keys are normalised in full precision
    per_key = shape.head_dim * (shape.kv_heads * normal + copies * width)
    per_token = 2 * (FULL + width) * shape.width + 4 * width * shape.mlp_width + normal * shape.heads * shape.head_dim
    return tokens * per_token + keys * per_key


def peak_training_bytes(
    model: Responder, work: Workload, width: int = 4, average: bool = True, recompute: bool = False
) -> float:
    """Returns the peak memory of a training step in bytes.

    It consists of the weights, both moments, the average, and the larger of gradients and activations, since
    activations are freed while gradients are computed. Mixed precision adds autocast's copies of the weights.

    Args:
        model: The responder.
        work: Sizes of the training step.
        width: Bytes of an activation that autocast does not keep in fp32.
        average: Whether training keeps an average of the weights.
        recompute: Whether every stack recomputes its blocks, see `Shape`.
    """
    count = sum(parameters(model).values())
    copies = width * count if width < FULL else 0
    return count * (16 if average else 12) + max(4 * count, activation_bytes(model, work, width, recompute) + copies)
