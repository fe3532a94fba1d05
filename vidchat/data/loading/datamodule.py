"""Data sets, mixed by weight, as endless batches of dialogues."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from torch.utils.data import DataLoader

from vidchat.batch import ChunkBatch
from vidchat.data.folder import FolderError
from vidchat.data.loading.batches import DialogueBatches, TextEncoder
from vidchat.data.loading.dialogues import BRANCHES, Dialogues
from vidchat.data.loading.endless import EndlessDataModule, FixedDataset, in_order
from vidchat.data.loading.gather import SourceRows, gather, order_of, standardisation
from vidchat.data.loading.order import padding
from vidchat.data.loading.sample_index import SampleIndex
from vidchat.data.loading.segment_table import SegmentTable
from vidchat.data.loading.selection import Selection
from vidchat.data.report import Report
from vidchat.data.tokens.encode import fill
from vidchat.data.tokens.encoder import AudioEncoder, ClipEncoder, FeatureEncoder, MediaFormat, VideoEncoder
from vidchat.data.tokens.token_cache import TokenCache
from vidchat.dialogue import Branch, Split, Tier
from vidchat.registry import to_names
from vidchat.runtime.memory import trim_heap

log = logging.getLogger(__name__)
NAMED = 20  # dialogues that a warning names; the report names all


@dataclass(frozen=True)
class Source:
    """Dialogues of one folder that are drawn with one weight.

    Attributes:
        root: The folder: a `dialogues.jsonl`, with the clips, media shards or tokens that it names.
        branch: Only dialogues of this branch, or all.
        tier: Only dialogues of this tier, or all.
        weight: The share of all draws, compared with the other sources.
        group: Sources of one group share their weight: one that has no dialogue to train on is left out. `None` is a
            source that must have one.
    """

    root: Path
    branch: Branch | None = None
    tier: Tier | None = None
    weight: float = 1.0
    group: int | None = None

    @classmethod
    def read(cls, entry: Mapping[str, Any], group: int) -> list[Self]:
        """Returns the sources of an entry of `data.sources`: one for each branch that it gives a weight above 0."""
        entry = {**entry, "root": Path(entry["root"])}
        if not isinstance(branches := entry.get("branch"), Mapping):
            return [cls(**entry)]
        shares = {branch: share for branch, share in branches.items() if share}
        known = all(
            branch in BRANCHES and type(share) in (int, float) and share > 0 for branch, share in shares.items()
        )
        if not shares or not known:
            raise FolderError(
                f"{entry['root']}: its branches must be of {', '.join(BRANCHES)}, with weights, such as "
                f"{{dialogue: 2, listening: 1}}, not {str(dict(branches))[:200]}"
            )
        weight = entry.get("weight", 1.0) / sum(shares.values())
        return [
            cls(**entry | {"branch": branch, "weight": weight * share, "group": group})
            for branch, share in shares.items()
        ]

    def __str__(self) -> str:
        filters = [f"{key}={value}" for key in ("branch", "tier") if (value := getattr(self, key)) is not None]
        return f"{self.root}" + (f" ({', '.join(filters)})" if filters else "")


@dataclass(frozen=True)
class Batching:
    """How samples become batches.

    Attributes:
        size: Samples in a batch, per process.
        seed: The seed of the order and of every random choice.
        num_workers: Processes that make batches.
    """

    size: int
    seed: int = 0
    num_workers: int = 0


@dataclass(frozen=True)
class Tokenizers:
    """The tokenizers of clips and texts.

    Attributes:
        video_vae: Encodes frames as latents.
        audio_codec: Encodes audio as codes, or `None`: samples then have no audio, and clips need none.
        text_tokenizer: Encodes texts as ids, or `None`: samples then have no text.
        thinker: Encodes clips as features, or `None`.
    """

    video_vae: VideoEncoder
    audio_codec: AudioEncoder | None = None
    text_tokenizer: TextEncoder | None = None
    thinker: FeatureEncoder | None = None


@dataclass
class _Folder:
    """One of the folders that are mixed."""

    root: Path
    cache: TokenCache
    dialogues: Dialogues
    table: SegmentTable


class DialogueDataModule(EndlessDataModule):
    """Batches of dialogues whose clips were encoded once, into `<root>/tokens`.

    Args:
        sources: The sources that are mixed.
        media_format: Working rates and size.
        selection: What samples are made from.
        batching: How samples become batches.
        tokenizers: The tokenizers of clips and texts.

    Raises:
        ClockError: The tokenizers' chunks do not span the same time.
        FolderError: There is no data set in a folder, or no dialogue for training.
        CacheError: There are tokens of other tokenizers or settings, and no clips to encode again.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        media_format: MediaFormat,
        selection: Selection,
        batching: Batching,
        tokenizers: Tokenizers,
    ) -> None:
        super().__init__(batching.size, batching.seed, batching.num_workers)
        self._sources, self.media_format, self.tokenizers = list(sources), media_format, tokenizers
        self.selection = selection if tokenizers.audio_codec is not None else selection.without("voice")
        self.encoder = ClipEncoder(
            tokenizers.video_vae,
            tokenizers.audio_codec,
            media_format.fps,
            media_format.size,
            media_format.allow_portrait,
            tokenizers.thinker,
        )
        self.report = Report("samples")
        self.statistics: list[tuple[float, float]] = []

    @classmethod
    def build(
        cls,
        data: Mapping[str, Any],
        condition: Mapping[str, Any],
        seed: int,
        audio: bool,
        branch: Branch | Mapping[Branch, float] | None,
        tier: Tier | None,
        video_vae: VideoEncoder,
        audio_codec: AudioEncoder,
        text_tokenizer: TextEncoder,
        thinker: FeatureEncoder | None = None,
    ) -> Self:
        """Returns the data module of a config.

        Args:
            data: The config's `data`; each of `data.sources` may give `root`, `branch`, `tier` and `weight`.
            condition: The config's `condition`.
            seed: The seed of everything random.
            audio: Whether there is audio.
            branch: The branch of the sources that do not give one, or the weights of several branches: one that a
                source does not have is left out.
            tier: The tier of the sources that do not give one.
            video_vae: See `Tokenizers`.
            audio_codec: See `Tokenizers`.
            text_tokenizer: See `Tokenizers`.
            thinker: See `Tokenizers`.
        """
        defaults = {"root": data["root"], "branch": branch, "tier": tier}
        entries = [defaults | source for source in data["sources"] or [{}]]
        return cls(
            [source for group, entry in enumerate(entries) for source in Source.read(entry, group)],
            MediaFormat(data["fps"], tuple(data["size"]), data["allow_portrait"], data["dtype"]),
            Selection.read(to_names(condition), data["max_chunks"], data.get("max_steps")),
            Batching(data["batch_size"], seed, data["num_workers"]),
            Tokenizers(video_vae, audio_codec if audio else None, text_tokenizer, thinker),
        )

    @cached_property
    def folders(self) -> dict[Path, _Folder]:
        """Folders by path, each opened once."""
        folders: dict[Path, _Folder] = {}
        for root in dict.fromkeys(source.root for source in self._sources):
            cache = TokenCache(root, self.encoder, self.selection.longest, self.media_format.dtype, keep_index=True)
            dialogues = Dialogues(root)
            folders[root] = _Folder(root, cache, dialogues, SegmentTable(cache, self.selection, dialogues))
        return folders

    @cached_property
    def sources(self) -> list[Source]:
        """The sources that are mixed; of a group, those that have dialogues to train on."""
        sources = []
        for source in self._sources:
            group = (
                [other for other in self._sources if other.group == source.group] if source.group is not None else []
            )
            left = [other for other in group if self.rows(other, "train").size]
            if group and not left:
                branches = " or ".join(str(other.branch) for other in group)
                raise FolderError(self._nothing(replace(source, branch=cast(Branch, branches)), "train"))
            if not group:
                sources.append(source)
            elif source in left:
                share = sum(other.weight for other in group) / sum(other.weight for other in left)
                sources.append(replace(source, weight=source.weight * share))
            else:
                log.info("%s: no dialogue of the split 'train', so the other branches take its share", source)
        return sources

    def rows(self, source: Source, split: Split) -> np.ndarray:
        """Returns (n,) the rows of a source's dialogues of a split, in its folder."""
        return self.folders[source.root].dialogues.rows(split, source.branch, source.tier)

    def prepare_data(self) -> None:
        """Encodes every clip that is not yet encoded, on the accelerator if there is one."""
        self._check_splits()
        self.encode("train", "val")

    def encode(self, *splits: Split) -> None:
        """Encodes the clips of these splits; a clip that cannot be is skipped and reported."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        for folder in self.folders.values():
            mine = [source for source in self.sources if source.root == folder.root]
            rows = np.concatenate([self.rows(source, split) for source in mine for split in splits])
            dialogues = (folder.dialogues[row] for row in rows[~folder.table.encoded(rows)].tolist())
            report = fill(folder.cache, (s for d in dialogues for s in self.selection.segments(d)), [device])
            if report.skipped:
                report.read = folder.table.count(rows) - len(report.skipped)
                log.warning("%s", report)

    def setup(self, stage: str | None = None) -> None:
        """Lists the samples of both splits; `report`, and `report.txt` beside the tokens, name what was left out."""
        if self.train is not None:
            return
        self._check_splits()
        skipped = [entry for folder in self.folders.values() for entry in folder.dialogues.report.skipped]
        self.report = Report("samples", 0, skipped)
        train, val = self.samples("train"), self.samples("val")
        for folder in self.folders.values():
            folder.table.forget()
        for number, source in enumerate(self.sources):
            if not (train.sources == number).any():
                raise FolderError(f"{source}: no usable clip is left for training: {self.report}")
        self.statistics = [standardisation(train.scores(slice(None), [name])[:, 0]) for name in self.selection.scores]
        self.train = (self._batches(train), order_of(train, [source.weight for source in self.sources], self.seed))
        self.val = (self._batches(val, torch.float32), self._in_order(val, self.batch_size)) if len(val) else None
        trim_heap()
        if self.trainer is None or self.trainer.is_global_zero:
            log.info("%s\npadding: %.1f %% of the columns of a batch", self.report, 100 * self.padding())
            self._write_report()

    def teardown(self, stage: str) -> None:
        """Logs which shards held samples that could not be read or had impossible values, and of which dialogues."""
        damage, names = self.damage(), self.damaged_dialogues()
        if damage:
            counts = ", ".join(f"{count} of {shard}" for shard, count in damage.items())
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            log.warning(
                "samples that could not be used and were skipped: %s, of the dialogues %s%s; `vidchat data verify` "
                "checks all shards",
                counts,
                ", ".join(names[:NAMED]),
                more,
            )
            self.report.skipped += [(shard, f"{count} samples could not be read") for shard, count in damage.items()]
            self.report.skipped += [(f"dialogue {name}", "a sample of it could not be used") for name in names]
            self._write_report()

    def damaged_dialogues(self) -> list[str]:
        """Returns the ids of the dialogues of which a sample could not be used so far, in any process of this rank."""
        names: dict[str, None] = {}
        splits = [cast(DialogueBatches, split[0]).samples for split in (self.train, self.val) if split is not None]
        for number, source in enumerate(self.sources):
            segments = self.folders[source.root].cache.damaged_segments()
            if segments:
                names |= dict.fromkeys(name for samples in splits for name in samples.dialogues_of(segments, number))
        return list(names)

    def damage(self) -> dict[str, int]:
        """Returns how many samples of each shard could not be used so far, in any process of this rank."""
        damage: dict[str, int] = {}
        for folder in self.folders.values():
            damage |= {f"{folder.root}: {shard}": count for shard, count in folder.cache.damage().items()}
        return damage

    def _write_report(self) -> None:
        folder = self.folders[self.sources[0].root].cache.folder
        try:
            self.report.write(folder / "report.txt")
        except OSError as error:  # a data set that may only be read
            log.info("no report.txt was written: %s", error)

    def samples(self, split: Split) -> SampleIndex:
        """Returns the samples of a split whose clips are all encoded, in the manifests' order; reports the others.

        Raises:
            CacheError: A clip was never encoded.
        """
        sources = [SourceRows(self.rows(source, split), self.folders[source.root].table) for source in self.sources]
        return gather(sources, self.report)

    def padding(self, batches: int = 200) -> float:
        """Returns the share of padding among the columns of the first training batches, said and heard together."""
        if self.train is None:
            raise FolderError("padding is known after setup(); call prepare_data() and setup() first")
        make, order = self.train
        lengths = cast(DialogueBatches, make).samples.lengths
        by_batch = ([drawn.item for drawn in order.batch(k, self.batch_size)] for k in range(batches))
        return padding(by_batch, lengths)

    def split_dataloader(self, split: Split, batch_size: int | None = None) -> DataLoader:
        """Returns a loader of each sample of any split once, in the manifests' order; encodes the split if need be."""
        self.encode(split)
        samples = self.samples(split)
        batches = self._in_order(samples, batch_size or self.batch_size)
        return self._loader(FixedDataset(self._batches(samples, torch.float32), batches, self.seed))

    @staticmethod
    def _in_order(samples: SampleIndex, size: int) -> list[Sequence[int]]:
        """Returns batches of each sample once, in order; each batch has one shape."""
        by_shape = (np.flatnonzero(samples.shapes == shape).tolist() for shape in range(len(samples.grids)))
        return [batch for numbers in by_shape for batch in in_order(numbers, size)]

    def _batches(self, samples: SampleIndex, dtype: torch.dtype | None = None) -> DialogueBatches:
        caches = [self.folders[source.root].cache for source in self.sources]
        return DialogueBatches(samples, caches, self.selection, self.tokenizers.text_tokenizer, self.statistics, dtype)

    def _check_splits(self) -> None:
        """Refuses, before any long work, sources without dialogues to train on, or to validate on where asked to."""
        for source in self.sources:
            if not self.rows(source, "train").size:
                raise FolderError(self._nothing(source, "train"))
        validates = self.trainer is not None and self.trainer.limit_val_batches != 0
        if validates and not any(self.rows(source, "val").size for source in self.sources):
            raise FolderError(self._nothing(self.sources[0], "val"))

    def _nothing(self, source: Source, split: Split) -> str:
        filters = {"tier": source.tier, "branch": source.branch}
        chosen = ", ".join(f"{key}={value}" for key, value in filters.items() if value is not None)
        remedy = " or set trainer.limit_val_batches=0" if split == "val" else ""
        return (
            f"{source.root}: no dialogue of the split '{split}'{f' with {chosen}' if chosen else ''}; "
            f'give some dialogues "split": "{split}"{remedy}'
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves a `ChunkBatch`; values stored in half precision become float32 on the device, not on the way."""
        moved: ChunkBatch = batch.to(device)
        return moved.map(lambda value: value.float() if value.is_floating_point() else value)
