from __future__ import annotations

import pytest
import torch
from transformers import Qwen3Config, Qwen3Model

from tests.model.conftest import CODES, LATENT, shape
from vidchat.model.attention import BlockCausal
from vidchat.model.cache import KeyValueCache
from vidchat.model.chunks import Children, chunk_positions, patchify, unpatchify
from vidchat.model.depth import CodeSampling, DepthTransformer, sample_code
from vidchat.model.flow import FlowHead, FlowShape
from vidchat.model.norm import RMSNorm
from vidchat.model.rotary import rotary_angles, rotate
from vidchat.model.spatial import SpatialTransformer, draw_masked_count, draw_order, set_sizes, spatial_positions
from vidchat.model.transformer import Shape, Transformer


def test_on_pure_text_the_backbone_is_qwen3():
    config = Qwen3Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    theirs = Qwen3Model(config).eval()
    theta = config.rope_parameters["rope_theta"]
    ours = Transformer(Shape(width=32, layers=3, heads=4, kv_heads=2, head_dim=16, mlp_width=64, theta=theta)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    weights = theirs.state_dict()
    embed = weights.pop("embed_tokens.weight")
    ours.load_state_dict(weights)
    ids = torch.randint(50, (2, 9))
    positions = torch.arange(9).float()[None, :, None].expand(2, -1, 3)
    mask = BlockCausal(torch.arange(9), torch.ones(2, 9, dtype=torch.bool))
    with torch.no_grad():
        expected = theirs(ids).last_hidden_state
        torch.testing.assert_close(ours(embed[ids], positions, mask), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours(embed[ids], positions, causal=True), expected, atol=1e-5, rtol=1e-5)


def test_positions_count_real_time():
    grid = chunk_positions(torch.tensor([10.0]), torch.arange(3), (2, 2), LATENT, frames=4)
    assert grid.shape == (1, 3, 8, 3)
    assert grid[0, :, 0, 0].tolist() == [10, 14, 18], "a latent frame ends with its last picture, 4 steps apart"
    assert grid[0, 1, 4:, 0].tolist() == [11, 12, 13, 14], "codec frames end 40 ms apart, the last with the picture"
    assert grid[0, 0, :4, 1:].tolist() == [[10, 10], [10, 11], [11, 10], [11, 11]]


def test_patchify_round_trip_and_children_keep_their_places():
    latents = torch.randn(2, 3, 5, 4, 6)
    assert torch.equal(unpatchify(patchify(latents, 2), 2, 2, 3), latents)
    children = Children(1, 1, 2)
    torch.nn.init.ones_(children.project.weight)
    torch.nn.init.zeros_(children.project.bias)
    coarse = torch.arange(6.0).view(1, 6, 1)
    fine = children(coarse, (2, 3)).view(4, 6)
    assert torch.equal(fine[::2, ::2], coarse.view(2, 3))
    assert torch.equal(fine[1::2, 1::2], coarse.view(2, 3))


@pytest.mark.parametrize("tokens", [36, 64, 256, 1440])
@pytest.mark.parametrize("sets", [1, 8, 16, 64])
def test_sets_cover_every_token_once(tokens, sets):
    sizes = set_sizes(tokens, sets)
    assert sum(sizes) == tokens
    assert min(sizes) > 0
    assert len(sizes) <= sets
    assert sizes[0] <= sizes[-1], "few tokens first, many at the end"


def test_mask_law():
    shares = torch.tensor([draw_masked_count(1000) / 1000 for _ in range(2000)])
    assert shares.min() >= 0.7
    assert shares.max() <= 1
    assert abs(shares.mean() - 0.867) < 0.01  # the mean of the truncated normal


def test_spatial_equals_attention_with_a_mask():
    """The first half on visible tokens only is the full half with the masked tokens hidden from attention."""
    spatial = SpatialTransformer(shape(2), 16, 5, ratio=1).eval()
    context, places, tokens = torch.randn(2, 3, 16), torch.randn(2, 9, 16), torch.randn(2, 9, 5)
    positions = torch.randn(1, 12, 3)
    order, visible = draw_order(2, 9, tokens.device), 4
    with torch.no_grad():
        result = spatial(context, places, positions, tokens, order, visible)
        x = torch.cat([context, spatial.token(tokens) + places], dim=1)
        seen = torch.zeros(2, 12, dtype=torch.bool)
        seen[:, :3] = True
        seen.scatter_(1, 3 + order[:, :visible], True)
        encoded = spatial.encoder(x, positions.expand(2, -1, -1), seen[:, None, None])
        hidden = ~seen[:, 3:]
        full = encoded.clone()
        full[:, 3:][hidden] = (spatial.mask_token + places)[hidden]
        expected = spatial.decoder(full, positions.expand(2, -1, -1))[:, 3:]
        expected = expected.gather(1, order[:, visible:, None].expand(-1, -1, 16))
        some = spatial(context, places, positions, tokens, order, visible, wanted=2)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(some, expected[:, :2], atol=1e-5, rtol=1e-5)


def test_spatial_does_not_see_masked_tokens():
    spatial = SpatialTransformer(shape(2), 16, 5, ratio=1).eval()
    tokens = torch.randn(1, 9, 5, requires_grad=True)
    order = draw_order(1, 9, tokens.device)
    inputs = torch.randn(1, 3, 16), torch.randn(1, 9, 16), spatial_positions((3, 3), 1, 4, 0, tokens.device)[:, :12]
    spatial(inputs[0], inputs[1], torch.randn(1, 12, 3), tokens, order, 4).square().sum().backward()
    seen = tokens.grad.abs().sum(-1)[0] > 0
    assert set(seen.nonzero().flatten().tolist()) == set(order[0, :4].tolist())


def only_read(layers: int = 4) -> tuple[SpatialTransformer, tuple[torch.Tensor, ...], torch.Tensor]:
    """One whose masked tokens are queries only, with what it reads and an order of its 9 tokens."""
    spatial = SpatialTransformer(shape(layers), 16, 5, ratio=1, masked_keys=False).eval()
    inputs = torch.randn(2, 3, 16), torch.randn(2, 9, 16), torch.randn(1, 12, 3), torch.randn(2, 9, 5)
    return spatial, inputs, draw_order(2, 9, inputs[0].device)


@torch.no_grad()
def test_masked_tokens_that_only_read_are_attention_with_a_mask():
    """Nobody sees a masked token, not even itself: the decoder over everything, with these columns hidden."""
    spatial, (context, places, positions, tokens), order = only_read()
    full = SpatialTransformer(shape(4), 16, 5, ratio=1)
    spatial.load_state_dict(full.state_dict())  # the same parameters under the same names
    known, missing = order[:, :4], order[:, 4:]
    index = torch.cat([torch.arange(3).expand(2, -1), 3 + order], dim=1)
    turned = positions.expand(2, -1, -1).gather(1, index[..., None].expand(-1, -1, 3))
    at = [places.gather(1, part[..., None].expand(-1, -1, 16)) for part in (known, missing)]
    visible = spatial.token(tokens.gather(1, known[..., None].expand(-1, -1, 5))) + at[0]
    encoded = spatial.encoder(torch.cat([context, visible], dim=1), turned[:, :7])
    everything = torch.cat([encoded, spatial.mask_token + at[1]], dim=1)
    seen = (torch.arange(12) < 7)[None, None, None]
    expected = spatial.decoder(everything, turned, seen)[:, 7:]
    result = spatial(context, places, positions, tokens, order, 4)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(result, full.eval()(context, places, positions, tokens, order, 4), atol=1e-3)


@torch.no_grad()
def test_masked_tokens_that_only_read_do_not_change_each_other():
    """Other places, another order, or none of the others at all: the first masked token's prediction stays."""
    spatial, (context, places, positions, tokens), order = only_read()
    before = spatial(context, places, positions, tokens, order, 4)
    shuffled = torch.cat([order[:, :5], order[:, 5:].flip(1)], dim=1)
    after = spatial(context, places, positions, tokens, shuffled, 4)
    torch.testing.assert_close(after[:, 0], before[:, 0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(after[:, 1:], before[:, 1:].flip(1), atol=1e-6, rtol=1e-5)
    elsewhere = places.scatter(1, order[:, 5:, None].expand(-1, -1, 16), 7.0)
    moved = spatial(context, elsewhere, positions, tokens, order, 4)
    torch.testing.assert_close(moved[:, 0], before[:, 0], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(moved[:, 1:], before[:, 1:], atol=1e-3), "their own predictions know their places"
    spatial.masked_keys = True
    assert not torch.allclose(
        spatial(context, elsewhere, positions, tokens, order, 4)[:, 0],
        spatial(context, places, positions, tokens, order, 4)[:, 0],
        atol=1e-3,
    )


@pytest.mark.parametrize("visible", [0, 4, 8])
@torch.no_grad()
def test_the_next_set_alone_is_the_next_set_among_all(visible):
    spatial, inputs, order = only_read()
    every = spatial(*inputs, order, visible)
    assert every.shape == (2, 9 - visible, 16)
    for wanted in range(1, 10 - visible):
        some = spatial(*inputs, order, visible, wanted)
        torch.testing.assert_close(some, every[:, :wanted], atol=1e-5, rtol=1e-5)


def test_generation_does_not_compute_masked_tokens_that_are_not_wanted():
    spatial, inputs, order = only_read()
    seen = []
    for layer in spatial.decoder.layers:
        layer.mlp.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    with torch.no_grad():
        spatial(*inputs, order, 4, wanted=2)
    assert seen == [3 + 4 + 2, 2]


def test_spatial_positions_put_a_coarse_token_amid_its_children():
    positions = spatial_positions((1, 1), 2, 4, 2, torch.device("cpu"))[0]
    assert positions[0].tolist() == [4, 0.5, 0.5]
    assert positions[1:3, 0].tolist() == [2, 4]
    assert positions[3:, 1:].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_depth_sampling_follows_its_own_logits():
    """Greedy sampling, cached step by step, picks what the teacher-forced pass finds most likely."""
    depth = DepthTransformer(shape(), 8, CODES).eval()
    hidden = torch.randn(3, 4, 8)
    with torch.no_grad():
        codes = depth.sample(hidden, CodeSampling(temperature=0))
        assert torch.equal(depth(hidden, codes).argmax(-1), codes)
        torch.testing.assert_close(depth.sample(hidden.repeat(2, 1, 1), CodeSampling(temperature=0), 2.0), codes)


def test_depth_is_causal_in_codes():
    depth = DepthTransformer(shape(), 8, CODES).eval()
    hidden, codes = torch.randn(1, 4, 8), torch.randint(16, (1, 4, 2))
    before = depth(hidden, codes)
    codes[0, 2, 1] = (codes[0, 2, 1] + 1) % 16
    after = depth(hidden, codes)
    assert torch.equal(before.flatten(1, 2)[:, :6], after.flatten(1, 2)[:, :6])
    assert not torch.equal(before[:, 3], after[:, 3])


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [(CodeSampling(1.0, 2, 1.0), {0, 1}), (CodeSampling(1.0, 0, 0.6), {0, 1}), (CodeSampling(0.0), {0})],
)
def test_code_sampling_cuts_off(sampling, allowed):
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    drawn = sample_code(probabilities.log().expand(4000, -1), sampling)
    assert set(drawn.tolist()) == allowed


def test_code_sampling_has_the_right_frequencies():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    drawn = sample_code(probabilities.log().expand(40000, -1), CodeSampling(1.0, 0, 1.0))
    torch.testing.assert_close(drawn.bincount(minlength=4) / 40000, probabilities, atol=0.01, rtol=0)


def test_flow_loss_starts_at_its_known_value():
    """A zero-initialised head predicts 0, so the flow loss is var(e - x) = 2 and the DDPM loss is var(e) = 1."""
    target, condition = torch.randn(4000, 4), torch.randn(4000, 8)
    for objective, expected in (("flow", 2.0), ("ddpm", 1.0)):
        head = FlowHead(4, 8, FlowShape(width=16, blocks=1, objective=objective))
        loss = head.loss(target, condition).mean()
        assert abs(loss.item() - expected) < 0.05
        assert loss.dtype == torch.float32


class _GaussianVelocity(torch.nn.Module):
    """E[e - x | x_s] for x ~ N(mean, std^2): what a perfect flow head returns."""

    mean, std = 1.5, 0.5
    condition = torch.nn.Identity()

    def embed_times(self, times):
        return times[:, None]

    def modulate(self, time, condition):
        return [time.expand(len(time), len(condition), 1)]

    def guided(self, x, modulations, guidance):
        time = modulations[0]
        data, mixed = (1 - time) * self.std**2, ((1 - time) * self.std) ** 2 + time**2
        return -self.mean + (time - data) / mixed * (x - (1 - time) * self.mean)


@pytest.mark.parametrize("steps", [10, 25, 100])
def test_sampler_with_a_perfect_head_recovers_the_distribution(steps):
    head = FlowHead(2, 8, FlowShape(width=16, blocks=1))
    head.denoiser = _GaussianVelocity()
    drawn = head.sample(torch.zeros(20000, 8), steps)
    assert abs(drawn.mean().item() - 1.5) < 0.02
    assert abs(drawn.std().item() - 0.5) < 2.0 / steps + 0.01


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_the_head_learns_a_known_distribution(objective):
    """Two conditions, two Gaussians: after a little training, samples have their means and spreads."""
    head = FlowHead(2, 2, FlowShape(width=64, blocks=2, objective=objective))
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    means, spread = torch.tensor([[1.0, -1.0], [-1.0, 0.5]]), 0.3
    for _ in range(400):
        which = torch.randint(2, (256,))
        target = means[which] + spread * torch.randn(256, 2)
        loss = head.loss(target, torch.eye(2)[which]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        for which in range(2):
            drawn = head.sample(torch.eye(2)[which].expand(2000, -1), 50)
            torch.testing.assert_close(drawn.mean(0), means[which], atol=0.12, rtol=0)
            torch.testing.assert_close(drawn.std(0), torch.full((2,), spread), atol=0.12, rtol=0)


def test_repeated_draws_are_the_mean_of_single_ones():
    head = FlowHead(3, 4, FlowShape(width=16, blocks=1, draws=4))
    torch.nn.init.normal_(head.denoiser.output.weight)
    target, condition = torch.randn(6, 3), torch.randn(6, 4)
    torch.manual_seed(5)
    together = head.loss(target, condition)
    single = FlowHead(3, 4, FlowShape(width=16, blocks=1, draws=1))
    single.load_state_dict(head.state_dict())
    torch.manual_seed(5)
    apart = single.loss(target.repeat(4, 1), condition.repeat(4, 1)).view(4, 6).mean(0)
    torch.testing.assert_close(together, apart)


def test_many_draws_share_the_embeddings_of_times():
    """Above 1,000 draws times are looked up in a table: the loss is that of every token and time by itself."""
    head = FlowHead(3, 4, FlowShape(width=16, blocks=1, draws=2))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    target, condition = torch.randn(600, 3), torch.randn(600, 4)
    torch.manual_seed(5)
    loss = head.loss(target, condition)
    gradient = torch.autograd.grad(loss.sum(), head.denoiser.time[0].weight)[0]
    torch.manual_seed(5)
    noise = torch.randn(1200, 3)
    time = ((torch.randn(1200).sigmoid() * 1000).long() + 0.5) / 1000
    twice = target.repeat(2, 1)
    mixed = (1 - time[:, None]) * twice + time[:, None] * noise
    error = head.denoiser(mixed, time, condition.repeat(2, 1)) - (noise - twice)
    expected = error.square().mean(-1).view(2, -1).mean(0)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-3)
    by_hand = torch.autograd.grad(expected.sum(), head.denoiser.time[0].weight)[0]
    torch.testing.assert_close(gradient, by_hand, atol=1e-3, rtol=1e-3)


def test_guidance_halves_share_the_noise():
    head = FlowHead(3, 4, FlowShape(width=16, blocks=1))
    torch.nn.init.normal_(head.denoiser.output.weight)
    condition = torch.randn(5, 4)
    with torch.no_grad():
        plain = head.sample(condition, 4, generator=torch.Generator().manual_seed(1))
        both = head.sample(condition.repeat(2, 1), 4, 3.0, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(plain, both, msg="with equal halves, guidance of any scale changes nothing")


def test_the_cache_refuses_what_it_was_not_made_for():
    cache = KeyValueCache(1, pinned=3, chunk=2, window=1)
    with pytest.raises(ValueError, match="3 pinned"):
        cache.write(0, torch.zeros(1, 1, 2, 8), torch.zeros(1, 1, 2, 8))


def test_the_norm_is_torch_s_and_its_backward_is_right():
    """Against finite differences in float64, and against `nn.RMSNorm` in float32."""
    norm = RMSNorm(8, eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    assert torch.autograd.gradcheck(norm.double(), torch.randn(2, 3, 8, dtype=torch.double, requires_grad=True))
    theirs = torch.nn.RMSNorm(8, eps=1e-6)
    theirs.load_state_dict(norm.float().state_dict())
    found = []
    for each in (norm, theirs):
        x = torch.linspace(-3, 3, 40).view(5, 8).requires_grad_()
        y = each(x)
        (y * torch.linspace(1, 2, 8)).sum().backward()
        found.append((y, x.grad, each.weight.grad))
    for ours, other in zip(*found, strict=True):
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-5)
    assert torch.equal(norm(torch.zeros(1, 8, requires_grad=True)), torch.zeros(1, 8)), "no NaN from nothing"


def test_rotation_in_half_precision_keeps_it():
    angles = rotary_angles(torch.rand(2, 5, 3), 8, 100.0)
    x = torch.randn(2, 3, 5, 8)
    assert rotate(x.bfloat16(), angles).dtype == torch.bfloat16
    torch.testing.assert_close(rotate(x.bfloat16(), angles).float(), rotate(x, angles), atol=3e-2, rtol=3e-2)
