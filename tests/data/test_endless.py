from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from vidchat.batch import ChunkBatch
from vidchat.data.folder import FolderError
from vidchat.data.loading.endless import Draw, EndlessDataModule, EndlessDataset, FixedDataset, in_order, uncounted
from vidchat.data.loading.order import Order, generator_for
from vidchat.data.loading.shared_buffers import PooledBatch


def make(draws: list[Draw]) -> list[tuple[int, float]]:
    return [(index, float(torch.rand((), generator=generator))) for index, generator in draws]


def batches(start: int, workers: int, count: int, rank: int = 0, ranks: int = 1, size: int = 3) -> list[Any]:
    stream = EndlessDataset(make, Order.shuffled(1, 10), size, start, rank, ranks)
    loader: DataLoader = DataLoader(stream, batch_size=None, num_workers=workers)
    return list(islice(iter(loader), count))


def test_resuming_at_k_gives_the_batches_of_an_unbroken_run_for_any_number_of_workers() -> None:
    unbroken = batches(0, 0, 12)
    assert len({tuple(batch[0]) for batch in unbroken}) > 6  # they differ at all
    for workers in (0, 1, 2):
        assert batches(0, workers, 12) == unbroken
        assert batches(5, workers, 7) == unbroken[5:]
    assert batches(5, 3, 7) == unbroken[5:]


def test_ranks_share_every_global_batch() -> None:
    whole = batches(0, 0, 6, size=4)
    shares = [batches(0, rank, 6, rank=rank, ranks=2, size=2) for rank in (0, 1)]
    assert [first + second for first, second in zip(*shares, strict=True)] == whole


def test_every_epoch_holds_each_item_once_in_another_order() -> None:
    drawn = [index for batch in batches(0, 0, 10, size=2) for index, _ in batch]
    epochs = [drawn[:10], drawn[10:]]
    assert [Counter(epoch) for epoch in epochs] == [Counter(range(10))] * 2
    assert epochs[0] != epochs[1]
    other = [index for batch in islice(EndlessDataset(make, Order.shuffled(2, 10), 2), 5) for index, _ in batch]
    assert other != epochs[0]


def test_choices_differ_between_epochs_and_depend_on_the_place_alone() -> None:
    values = [value for batch in batches(0, 0, 20, size=1) for _, value in batch]
    assert len(set(values)) == 20
    assert generator_for(1, "a").initial_seed() == generator_for(1, "a").initial_seed()
    assert generator_for(1, "a").initial_seed() != generator_for(1, "b").initial_seed()


def test_fixed_batches_are_all_items_in_order_drawn_alike() -> None:
    fixed = FixedDataset(make, in_order(range(5), 2), seed=0)
    assert [[index for index, _ in fixed[k]] for k in range(len(fixed))] == [[0, 1], [2, 3], [4]]
    assert [fixed[k] for k in range(3)] == [fixed[k] for k in range(3)]
    with pytest.raises(IndexError):
        fixed[3]


def test_micro_batches_share_a_global_batch_as_ranks_do() -> None:
    def drawn(rank: int, ranks: int, accumulated: int, count: int, size: int = 2) -> list[Any]:
        stream = EndlessDataset(make, Order.shuffled(1, 10), size, 0, rank, ranks, accumulated)
        return [stream.batch(k) for k in range(count)]

    alone = drawn(0, 1, 4, 8)
    first, second = drawn(0, 2, 2, 4), drawn(1, 2, 2, 4)
    assert [batch for pair in zip(first, second, strict=True) for batch in pair] == alone
    whole = [answer for batch in drawn(0, 1, 1, 2, size=8) for answer in batch]
    assert [answer for batch in alone for answer in batch] == whole


def test_ranks_take_fixed_batches_in_turn_and_equally_many() -> None:
    def tensors(draws: list[Draw]) -> dict[str, torch.Tensor]:
        return {"item": torch.tensor([index for index, _ in draws])}

    alone = [batch["item"].tolist() for batch in FixedDataset(tensors, in_order(range(5), 2), seed=0)]
    ranks = [FixedDataset(tensors, in_order(range(5), 2), 0, rank, 2) for rank in (0, 1)]
    assert [len(rank) for rank in ranks] == [2, 2]
    assign_spans = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    assert [batch["item"].tolist() for batch in assign_spans if "count" not in batch] == alone
    assert float(assign_spans[-1]["count"]) == 0  # no batch is left for the second rank


def test_a_batch_that_does_not_count_has_no_targets() -> None:
    steps, mask = torch.arange(3)[None], torch.ones(1, 3, dtype=torch.bool)
    batch = ChunkBatch(torch.zeros(1, 3, 1, 1, 1), steps, steps == 0, mask)
    assert not uncounted(batch).targets.any()
    assert batch.targets.all()
    handed = uncounted(PooledBatch(batch, None, []))  # as a loader's process sends it
    assert not handed.batch.targets.any()


def test_a_limit_of_validation_is_shared_by_the_ranks() -> None:
    data = Numbers(batch_size=1)
    data.setup()
    data.trainer = SimpleNamespace(limit_val_batches=3, world_size=2, global_rank=1)  # type: ignore[assignment]
    loader = data.val_dataloader()
    assert isinstance(loader, DataLoader)
    assert len(loader) == 2


def test_another_split_of_the_same_answers_goes_on(recwarn: pytest.WarningsRecorder) -> None:
    state = Numbers(batch_size=4, seed=5).state_dict() | {"consumed": 6}
    halves = Numbers(batch_size=2, seed=5)
    halves.trainer = SimpleNamespace(accumulate_grad_batches=2, world_size=1, global_rank=0)  # type: ignore[assignment]
    halves.load_state_dict(state)
    assert halves.consumed == 12
    assert "holds the same answers" in str(recwarn.pop().message)
    longer = Numbers(batch_size=4, seed=5)
    longer.trainer = halves.trainer
    longer.load_state_dict(state)
    assert longer.consumed == 6  # three steps of twice the answers
    assert "accumulated 2 times: resuming is not exact" in str(recwarn.pop().message)


class Numbers(EndlessDataModule):
    def setup(self, stage: str | None = None) -> None:
        def tensors(draws: list[Draw]) -> torch.Tensor:
            return torch.tensor([index for index, _ in draws], dtype=torch.float32)

        self.train, self.val = (tensors, Order.shuffled(self.seed, 10)), (tensors, in_order(range(4), self.batch_size))


class Recorder(L.LightningModule):
    """Remembers the batches it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen: list[list[float]] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch.tolist())
        return (self.weight * batch).mean()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(steps: int, workers: int, resume: str | None = None, save: str | None = None) -> list[list[float]]:
    module, data = Recorder(), Numbers(batch_size=3, seed=5, num_workers=workers)
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accumulate_grad_batches=2, val_check_interval=3, check_val_every_n_epoch=None,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    assert data.consumed == 2 * steps  # prefetched and validation batches do not count
    if save is not None:
        trainer.save_checkpoint(save)
    return module.seen


@pytest.mark.filterwarnings("ignore")
def test_lightning_resumes_with_the_next_batch(tmp_path: Any) -> None:
    unbroken = fit(6, workers=0)
    before = fit(3, workers=2, save=str(tmp_path / "a.ckpt"))
    after = fit(6, workers=0, resume=str(tmp_path / "a.ckpt"))
    assert before + after == unbroken


def test_a_checkpoint_of_other_batches_is_refused() -> None:
    state = Numbers(batch_size=3, seed=5).state_dict()
    with pytest.raises(ValueError, match=r"data\.batch_size=3"):
        Numbers(batch_size=4, seed=5).load_state_dict(state)
    with pytest.raises(ValueError, match="seed=5"):
        Numbers(batch_size=3, seed=6).load_state_dict(state)


def test_missing_splits_are_errors() -> None:
    empty = EndlessDataModule(batch_size=2)
    with pytest.raises(FolderError, match="'train'"):
        empty.train_dataloader()
    with pytest.raises(FolderError, match="'val'"):
        empty.val_dataloader()


def test_the_loaders_leave_the_global_generator_alone() -> None:
    data = Numbers(batch_size=2)
    data.setup()
    before = torch.get_rng_state()
    iterator: Iterator[Any] = iter(data.train_dataloader())
    next(iterator)
    assert torch.equal(torch.get_rng_state(), before)
