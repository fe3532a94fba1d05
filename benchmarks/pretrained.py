"""How fast pretrained kinds of tokenizers encode, decode and stream, beside the libraries' own decoding.

    python benchmarks/pretrained.py                                       # small random models, 64x64, on the CPU
    python benchmarks/pretrained.py --full --size 480x768 --device cuda   # the published shapes, random weights

Seconds of work for a second of clip at 25 fps, all in one run. `encode` and `decode` work on the whole clip by
diffusers or transformers; `enc push` and `dec push` are our streams, chunk by chunk; `late` after each is the cost of
the stream's last chunks over that of its early ones, 1 where a chunk does not cost more the longer the clip already is.
Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import torch
from transformers import EncodecConfig, EncodecModel, MimiConfig, MimiModel

from vidchat.runtime.sizes import parse_size
from vidchat.tokenizers.causal import CausalVAE
from vidchat.tokenizers.pretrained_audio import EncodecCodec, MimiCodec, PretrainedCodec

FPS = 25
SMALL: dict[str, dict[str, Any]] = {
    "AutoencoderKLWan": {"base_dim": 16, "num_res_blocks": 1},
    "AutoencoderKLCosmos": {
        "encoder_block_out_channels": (16, 16, 32, 32),
        "decode_block_out_channels": (16, 16, 32, 32),
        "attention_resolutions": (),
        "num_layers": 1,
    },
    "AutoencoderKLHunyuanVideo15": {"block_out_channels": (16, 32, 64, 128, 128), "layers_per_block": 1},
    "AutoencoderKLLTXVideo": {
        "block_out_channels": (16, 32, 64, 64),
        "decoder_block_out_channels": (16, 32, 64, 64),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
    },
}
ALWAYS = {"AutoencoderKLLTXVideo": {"decoder_causal": True}}  # without it there is no stream


def clock(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def usual(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median seconds of a call, after one to warm up."""
    return median([clock(work, device) for _ in range(repeats + 1)][1:])


def pushes(push: Callable[[torch.Tensor], Any], parts: list[torch.Tensor], device: torch.device) -> list[float]:
    """Seconds of every push of one stream."""
    return [clock(partial(push, part), device) for part in parts]


def row(encode: float, encoded: list[float], decode: float, decoded: list[float], seconds: float) -> dict[str, float]:
    """The figures of one tokenizer from seconds of whole clips and of each push; the first pushes warm up."""
    figures = {}
    for name, whole, each in (("enc", encode, encoded), ("dec", decode, decoded)):
        late = median(each[-4:]) / median(each[2:6])
        figures |= {f"{name}ode": whole / seconds, f"{name} push": sum(each) / seconds, f"{name} late": late}
    return {key: round(value, 4) for key, value in figures.items()}


@torch.inference_mode()
def video(kind: str, given: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """One video VAE."""
    settings = ({} if given.full else SMALL[kind]) | ALWAYS.get(kind, {})
    vae = CausalVAE(getattr(diffusers, kind)(**settings)).eval().to(device)
    height, width = given.size
    frames = torch.rand(1, 3, 1 + vae.temporal_stride * given.chunks, height, width, device=device) * 2 - 1
    latents = vae.encode(frames)
    raw, stream = vae.denormalise(latents), vae.stream()
    chunks = frames.split([1] + [vae.temporal_stride] * given.chunks, dim=2)
    return row(
        usual(lambda: vae.encode(frames), device, given.repeats),
        pushes(vae.encoder_stream().push, list(chunks), device),
        usual(lambda: vae.vae.decode(raw), device, given.repeats),
        pushes(stream.push, list(latents.split(1, dim=2)), device),
        given.chunks * vae.temporal_stride / FPS,
    )


@torch.inference_mode()
def audio(codec: PretrainedCodec, chunks: int, given: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """One audio codec, in chunks of 160 ms; codebooks filled with noise."""
    for name, buffer in codec.named_buffers():
        if name.endswith(("embed", "embed_sum")):
            buffer.normal_()
        elif name.endswith("cluster_usage"):
            buffer.fill_(1)
    codec.eval().to(device)
    frames = round(0.16 * codec.sample_rate / codec.hop)
    waveform = 0.1 * torch.randn(1, chunks * frames * codec.hop, device=device)
    codes, stream = codec.encode(waveform), codec.stream()
    return row(
        usual(lambda: codec.encode(waveform), device, given.repeats),
        pushes(codec.encoder_stream().push, list(waveform.split(frames * codec.hop, dim=1)), device),
        usual(lambda: codec.decode(codes), device, given.repeats),
        pushes(stream.push, list(codes.split(frames, dim=1)), device),
        chunks * 0.16,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the classes' own sizes")
    parser.add_argument("--size", type=parse_size, default=parse_size("64x64"), help="HEIGHTxWIDTH")
    parser.add_argument("--chunks", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(given.device)
    table = {kind: video(kind, given, device) for kind in SMALL}
    for name, codec in (
        ("EncodecModel", EncodecCodec(EncodecModel(EncodecConfig()), codebooks=8)),
        ("MimiModel", MimiCodec(MimiModel(MimiConfig()), codebooks=8)),
    ):
        table[name] = audio(codec, 25, given, device)
    print(f"{'s of work per s of clip':30}" + "".join(f"{name:>10}" for name in next(iter(table.values()))))
    for name, values in table.items():
        print(f"{name:30}" + "".join(f"{value:10.3f}" for value in values.values()))
    if given.json:
        given.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
