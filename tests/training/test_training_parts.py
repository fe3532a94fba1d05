"""EMA, schedule, the finite check, and starting from earlier weights."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.training.fakes import NoisyModule, Recorder, Stream, StreamModule, make_trainer
from vidchat.release.format import FORMAT
from vidchat.training.checkpoint import find_checkpoint
from vidchat.training.checkpoint_file import CheckpointError, read_checkpoint, write_checkpoint
from vidchat.training.ema import EMA
from vidchat.training.initialise import initialise
from vidchat.training.module import NotFiniteError
from vidchat.training.schedule import OptimizerSettings, clip_and_guard, make_optimizer, parameter_groups
from vidchat.training.seeding import seed_for, seed_step


def test_ema_is_the_average_it_says() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    ema = EMA(network, decay=0.15)
    for value in (1.0, 2.0):
        with torch.no_grad():
            network.weight.fill_(value)
        ema.update()
    # Decays: min(0.15, 1/10) = 0.1, then min(0.15, 2/11) = 0.15. So 0.9, then 0.15 * 0.9 + 0.85 * 2.
    assert ema.average["weight"].item() == pytest.approx(0.15 * 0.9 + 0.85 * 2)


def test_ema_swaps_in_and_gives_back_bit_for_bit() -> None:
    network = nn.Linear(3, 2).to(torch.bfloat16)
    ema = EMA(network, decay=0.9)
    with torch.no_grad():
        network.weight.add_(1)
    before = network.weight.clone()
    with ema.swapped():
        assert not torch.equal(network.weight, before)
    assert torch.equal(network.weight, before)
    assert ema.average["weight"].dtype == torch.float32


def test_ema_accumulates_steps_too_small_for_half_precision() -> None:
    network = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        network.weight.fill_(1.0)
    ema = EMA(network, decay=0.999)
    ema.updates = 10**6
    with torch.no_grad():
        network.weight.fill_(1.0078125)  # the next bf16 number
    for _ in range(100):
        ema.update()
    assert 1.0005 < ema.average["weight"].item() < 1.001


def test_learning_rate_warms_up_and_falls() -> None:
    settings = OptimizerSettings(steps=100, warmup=10, final=0.1)
    factors = [settings.factor(step) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == 1.0
    assert factors[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    assert OptimizerSettings(schedule="constant", warmup=0).factor(10**6) == 1.0


def test_weights_of_maps_decay_and_nothing_else_does() -> None:
    network = nn.ModuleDict({"a": nn.Linear(2, 2), "norm": nn.LayerNorm(2), "embed": nn.Embedding(3, 2)})
    network["flow"] = nn.Sequential(nn.Linear(2, 2))
    decayed, rest = parameter_groups(network, OptimizerSettings(weight_decay=0.1, no_decay=["flow"]))
    assert [id(p) for p in decayed["params"]] == [id(network["a"].weight)]
    assert decayed["weight_decay"] == 0.1
    assert rest["weight_decay"] == 0
    assert len(rest["params"]) == 6


def test_an_update_with_a_nan_is_skipped_whole() -> None:
    network = nn.Linear(2, 2)
    optimizer, _ = make_optimizer(network, OptimizerSettings())
    for poisoned in (False, True, False):
        network.zero_grad()
        (network(torch.ones(1, 2)).sum() * (torch.nan if poisoned else 1.0)).backward()
        before = [p.detach().clone() for p in network.parameters()]
        moments = [s.clone() for state in optimizer.state.values() for s in state.values()]
        _, skipped = clip_and_guard(optimizer, network, 1.0)
        optimizer.step()
        assert bool(skipped) == poisoned
        same = [torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)]
        assert all(same) if poisoned else not any(same)
        if poisoned:
            after = [s for state in optimizer.state.values() for s in state.values()]
            assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))


def test_training_stops_after_nans_in_a_row_and_the_weights_are_good(tmp_path: Path) -> None:
    module, recorder = NoisyModule(patience=2), Recorder()
    with pytest.raises(NotFiniteError, match=r"step \d+ .*loss, double"):
        make_trainer(tmp_path, 20, [recorder]).fit(module, datamodule=StreamModule(poison=3))
    assert [math.isfinite(loss) for loss in recorder.losses] == [True] * 3 + [False] * 2, "two are borne, not a third"
    assert all(bool(p.isfinite().all()) for p in module.parameters())
    assert all(bool(p.isfinite().all()) for p in module.ema.average.values())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_bad_data_are_not_called_a_learning_rate_too_high(tmp_path: Path, value: float) -> None:
    class Bad(StreamModule):
        def train_dataloader(self) -> DataLoader[Tensor]:
            return DataLoader([torch.full((3, 4), value)] * 9, batch_size=None)  # type: ignore[arg-type]

    with pytest.raises(NotFiniteError, match="the data are bad, not the learning rate") as caught:
        make_trainer(tmp_path, 9, []).fit(NoisyModule(patience=2), datamodule=Bad())
    assert "lower learning rate" not in str(caught.value)


def test_good_data_leave_the_learning_rate(tmp_path: Path) -> None:
    class Exploding(NoisyModule):
        def losses(self, batch: Tensor) -> dict[str, Tensor]:
            return {"loss": super().losses(batch)["loss"] * torch.inf}

    with pytest.raises(NotFiniteError, match="with a lower learning rate") as caught:
        make_trainer(tmp_path, 9, []).fit(Exploding(patience=2), datamodule=StreamModule())
    assert "data" not in str(caught.value)


def test_skipped_updates_are_told_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Flickering(StreamModule):
        def train_dataloader(self) -> DataLoader[Tensor]:
            batches = [torch.ones(3, 4) * (torch.nan if k in (2, 5) else 1.0) for k in range(9)]
            return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    make_trainer(tmp_path / "bad", 9, []).fit(NoisyModule(), datamodule=Flickering())
    assert "2 of 9 updates were skipped" in caplog.text
    assert "in 2 of them the batch itself held" in caplog.text
    caplog.clear()
    make_trainer(tmp_path / "good", 3, []).fit(NoisyModule(), datamodule=StreamModule())
    assert "skipped" not in caplog.text


def test_every_micro_batch_draws_anew_and_from_its_own_place(tmp_path: Path) -> None:
    """Step and micro-batch, counted on over the end of a step: no two share their noise."""
    seeds: list[int] = []

    class Watched(NoisyModule):
        def losses(self, batch: Tensor) -> dict[str, Tensor]:
            if self.training:
                seeds.append(torch.initial_seed())
            return super().losses(batch)

    options = {"accumulate_grad_batches": 2}
    make_trainer(tmp_path, 3, [], **options).fit(Watched(seed=4), datamodule=StreamModule())
    assert seeds == [seed_for(4, "train", step, micro, 0) for step in range(3) for micro in range(2)]


def test_accumulated_micro_batches_are_one_step(tmp_path: Path) -> None:
    """Two micro-batches of three move the weights as one batch of six, and the average and the rate once."""

    class Plain(NoisyModule):
        def losses(self, batch: Tensor) -> dict[str, Tensor]:
            return {"loss": (self.network[2](self.network[0](batch)) - 1).square().mean()}

    class Pairs(StreamModule):
        def train_dataloader(self) -> DataLoader[Tensor]:
            batches = itertools.islice(Stream(0), 6)
            joined = [torch.cat(pair) for pair in zip(*[iter(batches)] * 2, strict=True)]
            return DataLoader(joined, batch_size=None)  # type: ignore[arg-type]

    apart, together = Plain(), Plain()
    options = {"accumulate_grad_batches": 2}
    make_trainer(tmp_path / "a", 3, [], **options).fit(apart, datamodule=StreamModule())
    make_trainer(tmp_path / "b", 3, []).fit(together, datamodule=Pairs())
    for one, other in zip(apart.parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert apart.ema.updates == together.ema.updates == 3
    schedules = [module.trainer.lr_scheduler_configs[0].scheduler for module in (apart, together)]
    assert [schedule.last_epoch for schedule in schedules] == [3, 3]


def test_what_is_frozen_is_neither_trained_nor_averaged() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    ema = EMA(network, 0.9)
    assert set(ema.average) == {"1.weight", "1.bias"}
    optimizer, _ = make_optimizer(network, OptimizerSettings(betas=(0.8, 0.9), lr=1e-3))
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == set(map(id, network[1].parameters()))
    assert all(group["betas"] == (0.8, 0.9) for group in optimizer.param_groups)


def test_the_gradient_is_clipped_as_a_whole() -> None:
    network = nn.Linear(3, 2)
    optimizer, _ = make_optimizer(network, OptimizerSettings())
    for scale in (1e-3, 1e3):
        network.zero_grad()
        (scale * network(torch.ones(1, 3)).square().sum()).backward()
        before = torch.cat([p.grad.flatten() for p in network.parameters()]).clone()
        norm, _ = clip_and_guard(optimizer, network, 0.5)
        after = torch.cat([p.grad.flatten() for p in network.parameters()])
        torch.testing.assert_close(norm, before.norm())
        torch.testing.assert_close(after, before * (0.5 / norm).clamp(max=1), rtol=1e-4, atol=1e-8)


def test_nans_now_and_then_do_not_stop_training(tmp_path: Path) -> None:
    """Patience counts updates in a row, so every second one may fail for ever."""

    class Flickering(StreamModule):
        def train_dataloader(self) -> DataLoader[Tensor]:
            batches = [torch.ones(3, 4) * (torch.nan if k % 2 else 1.0) for k in range(12)]
            return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    module, recorder = NoisyModule(patience=1), Recorder()
    make_trainer(tmp_path, 12, [recorder]).fit(module, datamodule=Flickering())
    assert [math.isfinite(loss) for loss in recorder.losses] == [True, False] * 6


def test_seeds_differ_in_every_part() -> None:
    assert len({seed_for("a", 1), seed_for("a", 2), seed_for("b", 1), seed_for("a", 1, 0), seed_for("a1")}) == 5
    seeds = []
    for place in ((0, 3, 1, 0), (0, 3, 1, 1), (0, 3, 0, 0), (0, 2, 1, 0), (1, 3, 1, 0)):
        seed_step(*place)
        seeds.append(torch.initial_seed())
    assert len(set(seeds)) == 5, "seed, step, micro-batch and rank"
    seed_step(0, 3, 1)
    first = torch.rand(2)
    torch.rand(5)
    seed_step(0, 3, 1)
    assert torch.equal(first, torch.rand(2))


def test_validation_sees_the_average_and_the_same_noise_each_time(tmp_path: Path) -> None:
    module, recorder = NoisyModule(lr=1e-12, ema_decay=0.9), Recorder()
    with torch.no_grad():
        module.network[0].weight.zero_()  # the weights; the average keeps what they were
    make_trainer(tmp_path, 12, [recorder]).fit(module, datamodule=StreamModule())
    losses = [loss for _, loss in recorder.validations]
    assert [step for step, _ in recorder.validations] == [4, 8, 12]
    assert losses[0] != losses[-1]  # the average approaches the weights
    assert bool((module.network[0].weight.abs() < 1e-6).all())  # and does not replace them

    module, recorder = NoisyModule(lr=1e-12), Recorder()
    make_trainer(tmp_path / "still", 12, [recorder]).fit(module, datamodule=StreamModule())
    losses = [loss for _, loss in recorder.validations]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_checkpoints_are_whole_few_and_plain(tmp_path: Path) -> None:
    make_trainer(tmp_path, 10, [], every=3).fit(NoisyModule(), datamodule=StreamModule())
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000009.ckpt", "step_00000010.ckpt"]
    newest = find_checkpoint("auto", folder)
    assert newest == folder / "step_00000010.ckpt"
    assert read_checkpoint(newest)["config"] == {"a": 1}
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        read_checkpoint(newest)
    with pytest.raises(CheckpointError, match="does not exist"):
        find_checkpoint(str(tmp_path / "nowhere.ckpt"), folder)
    assert find_checkpoint("auto", tmp_path / "empty") is None
    assert find_checkpoint(None, folder) is None


def test_weights_of_other_tokenizers_are_refused(tmp_path: Path) -> None:
    module = NoisyModule()
    path = tmp_path / "step_00000001.ckpt"
    weights = {f"network.{name}": value for name, value in module.network.state_dict().items()}
    checkpoint = {"ema": module.ema.state_dict(), "config": {}, "state_dict": weights}
    write_checkpoint(checkpoint | {"fingerprints": {"video_vae": "f1"}, "format": FORMAT}, path)
    assert "4 tensors" in initialise(module, path, {}, {"video_vae": "f1"})
    with pytest.raises(CheckpointError, match=r"init_from=.*with the video_vae f1, and this run has f2"):
        initialise(module, path, {}, {"video_vae": "f2"})


def test_a_checkpoint_of_the_earlier_layout_is_no_start(tmp_path: Path) -> None:
    module, path = NoisyModule(), tmp_path / "step_00000001.ckpt"
    write_checkpoint({"ema": module.ema.state_dict(), "config": {}, "state_dict": {}, "fingerprints": {}}, path)
    with pytest.raises(CheckpointError, match=r"init_from=\S+ is of format 2, .*git tag v0\.1\.0"):
        initialise(module, path, {}, {})


def test_weights_that_are_not_finite_are_no_start(tmp_path: Path) -> None:
    module = NoisyModule()
    weights = {f"network.{name}": value * torch.nan for name, value in module.network.state_dict().items()}
    write_checkpoint({"ema": {"average": {}}, "config": {}, "state_dict": weights}, tmp_path / "step_00000001.ckpt")
    with pytest.raises(CheckpointError, match=r"init_from=.* is not finite in \d+ of \d+ values"):
        initialise(module, tmp_path / "step_00000001.ckpt", {}, {})


def test_initialise_takes_the_average_names_what_is_new_and_refuses_other_shapes(tmp_path: Path) -> None:
    make_trainer(tmp_path, 5, []).fit(trained := NoisyModule(lr=0.1), datamodule=StreamModule())
    source = tmp_path / "checkpoints" / "step_00000005.ckpt"

    fresh = NoisyModule(seed=5)
    fresh.network.add_module("extra", nn.Linear(1, 1))
    fresh.ema.reset()
    message = initialise(fresh, source, {}, {})
    assert "4 tensors" in message
    assert "new here and untrained: extra" in message
    for name, value in trained.ema.average.items():
        assert torch.equal(fresh.network.get_parameter(name), value)
        assert torch.equal(fresh.ema.average[name], value)
    assert not torch.equal(fresh.network[0].weight, trained.network[0].weight)

    wider = NoisyModule()
    wider.network[2] = nn.Linear(16, 2)
    with pytest.raises(CheckpointError, match=r"2\.bias is \(1,\) there and \(2,\) here.* a \(1 -> 2\)"):
        initialise(wider, source, {"a": 2}, {})
    with pytest.raises(CheckpointError, match="another kind of stage"):
        initialise(_other(), source, {}, {})


def _other() -> NoisyModule:
    module = NoisyModule()
    module.network = nn.Sequential()
    module.network.add_module("unlike", nn.Linear(2, 2))
    module.ema = EMA(module.network, 0.9)
    return module
