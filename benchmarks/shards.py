"""Measures how fast clips are decoded and encoded and token shards read, beside PyAV and webdataset: a table, and JSON.

    python benchmarks/shards.py --work /tmp/shards
    python benchmarks/shards.py --work /tmp/shards --clips 16 --samples 512

Clips are rendered noise that moves, 6 s of 480x768 at 25 fps with audio. Token samples are random, of 6 s at the base
size: latents (38, 16, 96, 60) in float16, as Wan 2.1 gives them, and codes (37, 12, 8), as EnCodec at 24 kHz does; 7 MB
a sample. "cold" drops the shards from the page cache before. CPU is that of all processes, in cores; the rate per CPU
second is comparable where others use the machine, too.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import av
import torch
import webdataset
from torch import Tensor

from vidchat.data.loading.datamodule import Batching, DialogueDataModule, Source, Tokenizers
from vidchat.data.loading.selection import Selection
from vidchat.data.media.read import Media, read_clip, write_clip
from vidchat.data.tokens.encode import fill
from vidchat.data.tokens.encoder import ClipEncoder, MediaFormat, Segment, Track
from vidchat.data.tokens.samples import decode_sample
from vidchat.data.tokens.shards import dumps
from vidchat.data.tokens.token_cache import TOKENS, TokenCache
from vidchat.dialogue import Clip
from vidchat.runtime.atomic import write_text
from vidchat.tokenizers.stacked import StackedVAE
from vidchat.tokenizers.stft_codec import StftCodec

FRAMES, CHUNKS = 149, 37  # 6 s
BASE = (768, 480)
CODEC_RATE, HOP, BOOKS = 24000, 320, 8
LATENTS = (CHUNKS + 1, 16, 96, 60)


class Stub:
    """A stand-in for a tokenizer; what is measured does not depend on its tokens."""

    temporal_stride, sample_rate, hop = 4, CODEC_RATE, HOP

    def encode(self, *_: Any) -> Any:
        raise NotImplementedError

    def fingerprint(self) -> str:
        return "stub"

    def to(self, device: Any) -> Stub:
        return self


class RandomEncoder(ClipEncoder):
    """Makes random tokens of the base size's shapes, without clips."""

    def __init__(self) -> None:
        super().__init__(Stub(), Stub(), 25, BASE)

    def read(self, segment: Segment) -> list[Media]:
        return [Media(torch.zeros(FRAMES, 3, 1, 1, dtype=torch.uint8), torch.zeros(1), 25, CODEC_RATE)]

    def encode_tracks(self, spans: Any, tracks: Any, device: Any = "cpu") -> list[dict[Track, Tensor]]:
        frames = CODEC_RATE * 4 // 25 // HOP
        return [{"latents": torch.randn(LATENTS), "codes": torch.randint(1024, (CHUNKS, frames, BOOKS))} for _ in spans]


class Table:
    """The rows of measurements."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def measure(
        self,
        name: str,
        run: Callable[[], int],
        bytes_each: float,
        repeats: int = 3,
        before: Callable[[], None] = lambda: None,
    ) -> float:
        """Calls `run`, which returns a number of samples, some times; returns the median samples per second."""
        rates, shares, efforts = [], [], []
        for _ in range(repeats):
            before()
            start, cpu = time.perf_counter(), cpu_seconds()
            count = run()
            wall = time.perf_counter() - start
            rates.append(count / wall)
            shares.append((cpu_seconds() - cpu) / wall)
            efforts.append(count / max(cpu_seconds() - cpu, 0.01))
        rate, effort = statistics.median(rates), statistics.median(efforts)
        self.rows.append(
            {
                "what": name,
                "samples_per_s": rate,
                "mb_per_s": rate * bytes_each / 1e6,
                "cpu": statistics.median(shares),
                "samples_per_cpu_s": effort,
                "all": rates,
            }
        )
        print(
            f"{name:56} {rate:8.1f}/s {rate * bytes_each / 1e6:8.1f} MB/s {statistics.median(shares):5.2f} CPU "
            f"{effort:8.1f}/CPU s",
            flush=True,
        )
        return rate


def cpu_seconds() -> float:
    """Returns the CPU seconds of this process and of its children, those that have ended and those that run."""
    times = os.times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def render(folder: Path, count: int) -> list[Path]:
    """Writes clips of moving noise."""
    paths = []
    for k in range(count):
        path = folder / f"{k}.mp4"
        paths.append(path)
        if not path.is_file():
            generator = torch.Generator().manual_seed(k)
            coarse = torch.rand(1, 3, 24, 15, generator=generator)
            frame = torch.nn.functional.interpolate(coarse, BASE, mode="bicubic").clamp(0, 1)[0]
            frames = torch.stack([frame.roll(n, 2) for n in range(FRAMES + 1)]).mul(255).to(torch.uint8)
            write_clip(path, frames, 0.1 * torch.randn(6 * 16000, generator=generator), 25, 16000)
    return paths


def clips(table: Table, work: Path, count: int, vae: Path, codec: Path) -> None:
    """Measures decoding, alone and as training does it, and encoding."""
    paths = render(work, count)
    size = sum(path.stat().st_size for path in paths) / count

    def alone() -> int:
        for path in paths:
            for kind in ("video", "audio"):
                with av.open(str(path)) as container:
                    stream = getattr(container.streams, kind)[0]
                    stream.codec_context.thread_count = 1
                    for _ in container.decode(stream):
                        pass
        return count

    def ours(shape: tuple[int, int]) -> int:
        for path in paths:
            read_clip(Clip(path, "a"), fps=25, size=shape, sample_rate=16000)
        return count

    def encode() -> int:
        (work / "dialogues.jsonl").touch()
        shutil.rmtree(work / TOKENS, ignore_errors=True)
        encoder = ClipEncoder(StackedVAE.load(vae), StftCodec.load(codec), 25, (96, 96))
        fill(TokenCache(work, encoder, CHUNKS), [Segment(Clip(path, "a"), "first", CHUNKS) for path in paths])
        return count

    table.measure("clips: PyAV decodes frames and audio, nothing else", alone, size)
    table.measure("clips: read at 768x480", lambda: ours(BASE), size)
    table.measure("clips: read at 96x96", lambda: ours((96, 96)), size)
    table.measure("clips: encode with the demo's tokenizers at 96x96", encode, size, repeats=2)


def tokens(table: Table, work: Path, count: int, batch_size: int) -> dict[str, float]:
    """Measures the reading of token shards of the base size."""
    segments = [Segment(Clip(work / f"{k}.mp4", "a"), "spans", CHUNKS) for k in range(count)]
    turns = [[{"role": "responder", "speaker": "a", "clip": f"{k}.mp4"}] for k in range(count)]
    lines = [dumps({"id": str(k), "branch": "single", "turns": turn}) for k, turn in enumerate(turns)]
    write_text(work / "dialogues.jsonl", "\n".join(lines))
    cache = TokenCache(work, RandomEncoder(), CHUNKS, "float16")
    written = 2.0 * math.prod(LATENTS)
    table.measure("tokens: writing shards", lambda: fill(cache, segments).read, written, repeats=1)
    tars = sorted(str(tar) for track in cache.tracks.values() for tar in track.folder.glob("*.tar"))
    size = sum(Path(tar).stat().st_size for tar in tars) / count
    keys = [cache.key(segment) for segment in segments]

    def plain() -> int:
        # A sample lies in two tars, of latents and of codes: half of what webdataset yields is a sample.
        return sum(1 for _ in webdataset.WebDataset(tars, shardshuffle=False)) // 2

    def decoded() -> int:
        return sum(1 for _ in webdataset.WebDataset(tars, shardshuffle=False).map(decode_sample)) // 2

    def ours() -> int:
        for rows in torch.randperm(count, generator=torch.Generator().manual_seed(0)).split(batch_size):
            for row in rows.tolist():
                cache.prefetch(keys[row])  # as a batch does
            for row in rows.tolist():
                cache.load(keys[row])
        return count

    def batches(workers: int) -> Callable[[], int]:
        stream = iter(datamodule(work, batch_size, workers).train_dataloader())
        for _ in islice(stream, 8):  # a loader process has started, and has memory that it reuses
            pass

        def run() -> int:
            number = max(1, count // batch_size)
            for _ in islice(stream, number):
                pass
            return number * batch_size

        return run

    def fresh(shared: bool) -> Callable[[], int]:
        """Returns the floor of a batch: as many bytes, written once into memory that was not used before."""

        def run() -> int:
            for _ in range(max(1, count // batch_size)):
                values = batch_size * math.prod(LATENTS)
                storage = torch.UntypedStorage._new_shared(2 * values) if shared else torch.UntypedStorage(2 * values)
                torch.empty(0, dtype=torch.float16).set_(storage, 0, (values,)).fill_(1)
            return max(1, count // batch_size) * batch_size

        return run

    def drop() -> None:
        for tar in tars:
            descriptor = os.open(tar, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)

    plain(), ours()  # into the page cache, and the code warm
    rates = {
        "webdataset": table.measure("tokens: plain webdataset, bytes only, in order", plain, size, 5),
        "webdataset decoded": table.measure("tokens: webdataset, safetensors decoded, in order", decoded, size, 5),
        "ours": table.measure("tokens: ours, checked tensors, shuffled", ours, size, 5),
        "batches": table.measure(f"tokens: ours, padded batches of {batch_size}", batches(0), size),
        "loader": table.measure(f"tokens: ours, batches of {batch_size} by one loader process", batches(1), size),
        "floor batches": table.measure("floor: a batch's bytes written to fresh memory", fresh(False), size),
        "floor loader": table.measure("floor: a batch's bytes written to fresh shared memory", fresh(True), size),
        "cold webdataset": table.measure("tokens, cold: plain webdataset, bytes only", plain, size, 3, drop),
        "cold ours": table.measure("tokens, cold: ours, checked tensors, shuffled", ours, size, 3, drop),
    }
    for kind in ("", "cold "):
        print(f"{kind}ours / plain webdataset: {rates[f'{kind}ours'] / rates[f'{kind}webdataset']:.2f}")
    return rates


def datamodule(root: Path, batch_size: int, workers: int = 0) -> DialogueDataModule:
    """Returns the data module of token shards that `RandomEncoder` made."""
    media_format = MediaFormat(25, BASE, dtype="float16")
    data = DialogueDataModule(
        [Source(root)],
        media_format,
        Selection(max_chunks=CHUNKS),
        Batching(batch_size, 0, workers),
        Tokenizers(Stub(), Stub()),
    )
    data.setup()
    return data


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for clips and shards; it is left there")
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--samples", type=int, default=128, help="token samples, of 7 MB each")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--vae", type=Path, default=Path("checkpoints/demo/video_vae"))
    parser.add_argument("--codec", type=Path, default=Path("checkpoints/demo/audio_codec"))
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/shards.json"))
    options = parser.parse_args(None if arguments is None else list(arguments))
    folders = {name: options.work / name for name in ("clips", "tokens")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    print(f"{os.cpu_count()} cores of {machine()}, torch {torch.__version__} with {torch.get_num_threads()} threads")
    table = Table()
    clips(table, folders["clips"], options.clips, options.vae, options.codec)
    rates = tokens(table, folders["tokens"], options.samples, options.batch_size)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"machine": machine(), "rows": table.rows, "rates": rates}, indent=1))


def machine() -> str:
    """Returns the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
