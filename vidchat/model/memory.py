"""The memory that training takes, by formula; the tests hold it to what a small model is measured to take."""

from __future__ import annotations

from dataclasses import replace

from vidchat.model.cost import SETS, Sizes, Workload, parameters, predicted_tokens
from vidchat.model.responder import Responder
from vidchat.model.set_causal import SetCausalTransformer
from vidchat.model.spatial import set_sizes
from vidchat.model.transformer import Shape


def training_bytes(model: Responder, work: Workload) -> float:
    """Bytes that one training step moves at least: weights in bf16 forward and backward, gradients, AdamW and the
    average in fp32, activations written once and read once."""
    count = sum(parameters(model).values())
    optimizer = 4 * (1 + 3 + 3 + 2)  # gradient read; weight and both moments read and written; the average as well
    return count * (2 * 2 + 4 + optimizer) + 2 * activation_bytes(model, work, 2)


def activation_bytes(model: Responder, work: Workload, width: int = 4, recompute: bool = False) -> float:
    """What autograd keeps between forward and backward.

    Of a block, for each token: 4 D + 4 mlp_width + 3 heads head_dim values, and 3 kv_heads head_dim for each that is a
    key, and where heads share keys, their copies; of the flow head, for each token and time (4 blocks + 5) width, for
    each draw (6 blocks + 3) width; of the depth transformer's logits, two values each. A stack that recomputes keeps D
    values for each block, and all of one block at a time.
    """
    sizes, clip = Sizes.of(model, work), work.chunks
    kept = min(clip * work.batch, model.objective.spatial_chunks or clip * work.batch)
    predicted = predicted_tokens(model, sizes)
    tokens = work.batch * (work.text + sizes.chunk * (work.turns + clip))
    stacks = [(model.backbone.shape, tokens, tokens)]  # with the tokens that come in and those that are keys
    values = 0
    if model.depth is not None and model.code_shape is not None:
        steps = work.batch * clip * sizes.frames * sizes.books
        stacks.append((model.depth.transformer.shape, steps, steps))
        values += steps * 2 * model.code_shape.vocabulary
    if model.spatial is not None:
        if isinstance(model.spatial, SetCausalTransformer):
            known = kept * (sizes.chunk + sizes.fine - set_sizes(sizes.fine, SETS)[-1])
            asked = kept * sizes.fine, known
        else:
            known = kept * (sizes.chunk + sizes.fine - predicted)
            asked = (kept * (sizes.chunk + sizes.fine),) * 2
        stacks.append((model.spatial.encoder.shape, known, known))
        stacks.append((model.spatial.decoder.shape, *asked))
    flow = model.flow.shape
    of_time = (4 * flow.blocks + 5) * flow.width + 256
    of_draw = (6 * flow.blocks + 3) * flow.width + 4 * model.flow.token_dim
    values += kept * predicted * (flow.times * of_time + flow.draws * of_draw)
    if recompute:
        stacks = [(replace(shape, recompute=True), tokens, keys) for shape, tokens, keys in stacks]
    values += sum(shape.layers * _kept_values(shape, tokens, keys) for shape, tokens, keys in stacks)
    again = [_block_values(shape, tokens, keys) for shape, tokens, keys in stacks if shape.recompute]
    return width * (values + max(again, default=0))


def _kept_values(shape: Shape, tokens: int, readable: int) -> int:
    """Of one block, until the backward pass."""
    return tokens * shape.width if shape.recompute else _block_values(shape, tokens, readable)


def _block_values(shape: Shape, tokens: int, readable: int) -> int:
    copies = 2 * (shape.heads - shape.kv_heads) if shape.heads > shape.kv_heads else 0
    of_key = (3 * shape.kv_heads + copies) * shape.head_dim
    of_token = 4 * shape.width + 4 * shape.mlp_width + 3 * shape.heads * shape.head_dim
    return tokens * of_token + readable * of_key


def peak_training_bytes(
    model: Responder, work: Workload, width: int = 4, average: bool = True, recompute: bool = False
) -> float:
    """Peak memory of a training step: weights, both moments, the average, and the larger of gradients and activations.

    Activations are freed while gradients come to be, so the two do not add up.

    Args:
        model: The responder.
        work: Its clips.
        width: Bytes of an activation.
        average: Whether an average of the weights is kept.
        recompute: As if every stack recomputed its blocks, see `Shape`.
    """
    count = sum(parameters(model).values())
    return count * (16 if average else 12) + max(4 * count, activation_bytes(model, work, width, recompute))
