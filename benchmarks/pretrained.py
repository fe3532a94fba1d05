"""Speed of pretrained tokenizers: encoding, decoding and streaming, beside the libraries' own decoding.

    python benchmarks/pretrained.py                                       # small random models, 64x64, on the CPU
    python benchmarks/pretrained.py --full --size 480x768 --device cuda   # the published shapes, random weights

Times are seconds of work per second of clip at 25 fps, all in one run. `encode` and `decode` process the whole clip
with diffusers or transformers; `enc push` and `dec push` are our streams, chunk by chunk. `late` is the cost of a
stream's last chunks over that of its early ones: 1 if the cost of a chunk does not grow with the clip. Prints a table
and writes JSON.
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
ALWAYS = {"AutoencoderKLLTXVideo": {"decoder_causal": True}}  # a stream needs a causal decoder


def clock(work: Callable[[], Any], device: torch.device) -> float:
    """Returns the seconds of one call."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def median_seconds(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Returns the median seconds of a call, after one to warm up."""
    return median([clock(work, device) for _ in range(repeats + 1)][1:])


def pushes(push: Callable[[torch.Tensor], Any], chunks: list[torch.Tensor], device: torch.device) -> list[float]:
    """Returns the seconds of every push of one stream."""
    return [clock(partial(push, chunk), device) for chunk in chunks]


def row(encode: float, encoded: list[float], decode: float, decoded: list[float], seconds: float) -> dict[str, float]:
    """Returns one tokenizer's figures from the seconds of whole clips and of every push; the first pushes warm up."""
    figures = {}
    for name, clip, pushed in (("enc", encode, encoded), ("dec", decode, decoded)):
        late = median(pushed[-4:]) / median(pushed[2:6])
        figures |= {f"{name}ode": clip / seconds, f"{name} push": sum(pushed) / seconds, f"{name} late": late}
    return {key: round(value, 4) for key, value in figures.items()}


@torch.inference_mode()
def video(kind: str, options: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Returns the figures of one video VAE."""
    settings = ({} if options.full else SMALL[kind]) | ALWAYS.get(kind, {})
    vae = CausalVAE(getattr(diffusers, kind)(**settings)).eval().to(device)
    height, width = options.size
    frames = torch.rand(1, 3, 1 + vae.temporal_stride * options.chunks, height, width, device=device) * 2 - 1
    latents = vae.encode(frames)
    raw, stream = vae.denormalise(latents), vae.stream()
    chunks = frames.split([1] + [vae.temporal_stride] * options.chunks, dim=2)
    return row(
        median_seconds(lambda: vae.encode(frames), device, options.repeats),
        pushes(vae.encoder_stream().push, list(chunks), device),
        median_seconds(lambda: vae.vae.decode(raw), device, options.repeats),
        pushes(stream.push, list(latents.split(1, dim=2)), device),
        options.chunks * vae.temporal_stride / FPS,
    )


@torch.inference_mode()
def audio(codec: PretrainedCodec, chunks: int, options: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Returns the figures of one audio codec in chunks of 160 ms, with random codebooks."""
    for name, buffer in codec.named_buffers():
        if name.endswith(("embed", "embed_sum")):
            buffer.normal_()
        elif name.endswith("cluster_usage"):
            buffer.fill_(1)
    codec.eval().to(device)
    codec_frames = round(0.16 * codec.sample_rate / codec.hop)
    waveform = 0.1 * torch.randn(1, chunks * codec_frames * codec.hop, device=device)
    codes, stream = codec.encode(waveform), codec.stream()
    return row(
        median_seconds(lambda: codec.encode(waveform), device, options.repeats),
        pushes(codec.encoder_stream().push, list(waveform.split(codec_frames * codec.hop, dim=1)), device),
        median_seconds(lambda: codec.decode(codes), device, options.repeats),
        pushes(stream.push, list(codes.split(codec_frames, dim=1)), device),
        chunks * 0.16,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="published sizes")
    parser.add_argument("--size", type=parse_size, default=parse_size("64x64"), help="HEIGHTxWIDTH")
    parser.add_argument("--chunks", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(options.device)
    table = {kind: video(kind, options, device) for kind in SMALL}
    for name, codec in (
        ("EncodecModel", EncodecCodec(EncodecModel(EncodecConfig()), codebooks=8)),
        ("MimiModel", MimiCodec(MimiModel(MimiConfig()), codebooks=8)),
    ):
        table[name] = audio(codec, 25, options, device)
    print(f"{'s of work per s of clip':30}" + "".join(f"{name:>10}" for name in next(iter(table.values()))))
    for name, values in table.items():
        print(f"{name:30}" + "".join(f"{value:10.3f}" for value in values.values()))
    if options.json:
        options.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
