"""A folder data set as endless batches of answers and what they answer."""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from vidchat.data.batches import Conditions, DialogueBatches, Item, TextEncoder, with_voices
from vidchat.data.cache import CacheError, TokenCache
from vidchat.data.endless import EndlessDataModule, Fixed
from vidchat.data.folder import FolderError, read_folder
from vidchat.data.report import Report
from vidchat.data.tokens import AudioEncoder, ClipEncoder, VideoEncoder
from vidchat.dialogue import Branch, Dialogue, Split, Tier

log = logging.getLogger(__name__)


class DialogueDataModule(EndlessDataModule):
    """Batches of dialogues whose clips were encoded once, into `<root>/.tokens`.

    Args:
        root: The folder data set.
        video_vae: Pictures to latents.
        audio_codec: Sound to codes; used when `audio`.
        text_tokenizer: Transcripts to ids; used when `text`.
        fps: Working pictures per second.
        size: (height, width) of a picture.
        max_chunks: The longest answer. A longer one is cut to its beginning; in the single branch, into spans.
        batch_size: Answers in a batch, per process.
        seed: Of the order and of every random choice.
        num_workers: Processes that make batches.
        audio: Whether answers have sound; without it, a clip needs no sound track.
        text: Whose transcript is a condition: `answer`, `question` or `None`.
        initiator: Whether the question's clip is a condition; dialogues without a question are then left out.
        earlier_turns: Whether the turns before the question are.
        voice: Whether a sample of the responder's voice is, from another answer of the same speaker and split.
        scores: Names of quality scores that are conditions; standardised over the training answers.
        tier: Only dialogues of this tier, or all.
        branch: Only dialogues of this branch, or all.
        max_turn_chunks: The longest other turn, by default `max_chunks`.
        voice_chunks: The longest sample of a voice.

    Raises:
        ClockError: The tokenizers' chunks do not span the same time.
        FolderError: There is no data set in the folder, or no dialogue for training.
        CacheError: There are token files that were made with something else.
    """

    def __init__(
        self,
        root: str | Path,
        video_vae: VideoEncoder,
        audio_codec: AudioEncoder | None,
        text_tokenizer: TextEncoder | None,
        fps: int,
        size: tuple[int, int],
        max_chunks: int,
        batch_size: int,
        seed: int = 0,
        num_workers: int = 0,
        audio: bool = True,
        text: Literal["answer", "question"] | None = None,
        initiator: bool = False,
        earlier_turns: bool = False,
        voice: bool = False,
        scores: list[str] | None = None,
        tier: Tier | None = None,
        branch: Branch | None = None,
        max_turn_chunks: int | None = None,
        voice_chunks: int = 12,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        self.root, self.tier, self.branch = Path(root), tier, branch
        self.text_tokenizer = text_tokenizer
        self.conditions = Conditions(
            text=text,
            initiator=initiator,
            earlier_turns=earlier_turns,
            voice=voice and audio,
            scores=tuple(scores or ()),
            max_chunks=max_chunks,
            max_turn_chunks=max_turn_chunks or max_chunks,
            voice_chunks=voice_chunks,
        )
        self.encoder = ClipEncoder(video_vae, audio_codec if audio else None, fps, size)
        self.report = Report("answers")
        self.statistics: list[tuple[float, float]] = []

    @property
    def tokens_folder(self) -> Path:
        """Where token files and `report.txt` are kept."""
        return self.root / ".tokens"

    @cached_property
    def folder(self) -> tuple[list[Dialogue], Report]:
        """The whole folder, read once, and what of its manifest was left out."""
        return read_folder(self.root)

    def dialogues(self, split: Split) -> list[Dialogue]:
        """The dialogues of a split that the filters let pass."""
        return [
            dialogue
            for dialogue in self.folder[0]
            if dialogue.split == split
            and self.tier in (None, dialogue.tier)
            and self.branch in (None, dialogue.branch)
            and not (self.conditions.initiator and dialogue.question is None)
        ]

    def prepare_data(self) -> None:
        """Encodes every clip that is not yet encoded, on the accelerator if there is one."""
        self._check_splits()
        self.encode("train", "val")

    def encode(self, *splits: Split) -> Report:
        """Encodes the clips of these splits; a clip that cannot be is skipped and reported."""
        pieces = [p for split in splits for d in self.dialogues(split) for p in self.conditions.pieces(d)]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        report = TokenCache(self.tokens_folder, self.encoder).fill(pieces, device)
        if report.skipped:
            log.warning("%s", report)
        return report

    def setup(self, stage: str | None = None) -> None:
        """Lists the items of both splits; `report` and `<root>/.tokens/report.txt` name what was left out."""
        if self.train is not None:
            return
        self._check_splits()
        self.report = Report("answers", 0, list(self.folder[1].skipped))
        train = self.items("train")
        if not train:
            raise FolderError(f"{self.root}: no usable clip is left for training; see {self.tokens_folder}/report.txt")
        self.statistics = [standardisation(name, train) for name in self.conditions.scores]
        self.train = (self._batches(train), len(train))
        val = self.items("val")
        self.val = (self._batches(val), len(val)) if val else None
        if self.trainer is None or self.trainer.is_global_zero:
            self.report.write(self.tokens_folder / "report.txt")
        rank_zero_info(str(self.report))

    def items(self, split: Split) -> list[Item]:
        """The answers of a split whose clips are all encoded, in the manifest's order; others go to the report.

        Raises:
            CacheError: A clip was never encoded.
        """
        cache, items = TokenCache(self.tokens_folder, self.encoder), []
        bad = cache.bad()
        for dialogue in self.dialogues(split):
            names = [piece.name for piece in self.conditions.pieces(dialogue)]
            why = [bad[name] for name in names if name in bad]
            if why:
                self.report.skipped.append((f"dialogue {dialogue.id}", why[0]))
                continue
            if not all(cache.has(name) for name in names):
                raise CacheError(f"dialogue {dialogue.id} of {self.root} is not encoded; call prepare_data() first")
            roles = [role for _, role in self.conditions.turns(dialogue)]
            turns = tuple(zip(names[1:], roles, strict=True))
            spans = cache.spans(names[0]) if dialogue.branch == "single" else 1
            items += [Item(dialogue, names[0], span, turns) for span in range(spans)]
        self.report.read += len(items)
        return with_voices(items)

    def split_dataloader(self, split: Split, batch_size: int | None = None) -> DataLoader:
        """Each answer of any split once, in the manifest's order; encodes the split if need be."""
        self.encode(split)
        items = self.items(split)
        return self._loader(Fixed(self._batches(items), len(items), batch_size or self.batch_size, self.seed))

    def _batches(self, items: list[Item]) -> DialogueBatches:
        cache = TokenCache(self.tokens_folder, self.encoder)
        return DialogueBatches(items, cache, self.conditions, self.text_tokenizer, self.statistics)

    def _check_splits(self) -> None:
        """Before any long work: are there dialogues to train on, and to validate on if that is asked for?"""
        for split in ("train", "val"):
            wanted = split == "train" or (self.trainer is not None and self.trainer.limit_val_batches != 0)
            if wanted and not self.dialogues(cast(Split, split)):
                filters = {"tier": self.tier, "branch": self.branch, "initiator": self.conditions.initiator or None}
                told = ", ".join(f"{key}={value}" for key, value in filters.items() if value is not None)
                remedy = " or set trainer.limit_val_batches=0" if split == "val" else ""
                raise FolderError(
                    f"{self.root}: no dialogue of the split '{split}'{f' with {told}' if told else ''}; "
                    f'give some dialogues "split": "{split}"{remedy}'
                )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves a `ChunkBatch`."""
        return batch.to(device)


def standardisation(name: str, items: list[Item]) -> tuple[float, float]:
    """Mean and standard deviation of a score over the items that have it; (0, 1) where it says nothing."""
    values = [item.dialogue.answer.scores[name] for item in items if name in item.dialogue.answer.scores]
    if not values:
        return 0.0, 1.0
    mean, std = float(torch.tensor(values).mean()), float(torch.tensor(values).std(correction=0))
    return mean, std if std > 0 else 1.0
