"""Hostile releases: a folder from a stranger builds nothing but this package's own parts, in bounds, or is refused."""

from __future__ import annotations

import copy
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.faults import commands
from tests.faults.law import Case, judge
from tests.faults.mutations import VALUES, damaged
from vidchat.release import load_release, read_config, read_weights

SECRET = "a-secret-of-the-loader"
ABSURD = (10**7, 10**12, 2**63, -1, 0, 1e30, float("nan"), float("inf"), "x", None, [], {}, True, "9" * 300)


def _load(folder: Path) -> None:
    load_release(folder)


def _leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from _leaves(value, (*path, key))


def _with(config: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(config)
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed


def hostile_configs(folder: Path, good: Path, count: int) -> Iterator[Case]:
    """Every value of `config.yaml` in turn becomes absurd, an interpolation, or a foreign class."""
    release = folder / "release"
    shutil.copytree(good, release, dirs_exist_ok=True)
    config = yaml.safe_load((good / "config.yaml").read_text())
    paths = list(_leaves(config))
    chance = random.Random(0)
    os.environ["A_SECRET"] = SECRET
    canary = folder / "canary"
    calls = [
        {"_target_": "os.system", "_args_": [f"touch {canary}"]}, {"_target_": "builtins.eval", "_args_": ["1"]},
        {"_target_": "vidchat.tokenizers.weights.os.system", "_args_": [f"touch {canary}"]},
        {"_target_": "vidchat.release.load_release", "source": "someone/else"}, {"_target_": "vidchat.cli.app"},
        {"_target_": "vidchat.model.responder.Responder.__init__.__globals__"}, {"_target_": ""}, {"_target_": 3},
        {"_target_": "vidchat.tokenizers.text.HubTokenizer", "name": "someone/${oc.env:A_SECRET}"},
        {"_target_": "vidchat.tokenizers.text.HubTokenizer", "name": "https://127.0.0.1:9/x"},
        {"type": "os.system"}, {"type": "os/system"}, {"type": "antigravity/fly"}, {"type": ["bytes"]}, {"type": ""},
        {"type": "responder"}, {"type": "stacked_vae", "directory": "/dev"}, {"type": "bytes", "_target_": "os.system"},
        {"type": "hub_tokenizer", "name": "https://127.0.0.1:9/x"},
    ]  # fmt: skip
    texts = [
        "${oc.env:A_SECRET}",
        "${oc.env:HOME}/x",
        "${stage}",
        "${missing}",
        "${",
        "/etc/passwd",
        "../../..",
        "a\0b",
    ]
    for number in range(count):
        path = paths[number % len(paths)]
        value = chance.choice((*calls, *texts, *ABSURD))
        (release / "config.yaml").write_text(yaml.safe_dump(_with(config, path, value)))
        name = f"{'.'.join(map(str, path))}={str(value)[:60]}"
        yield Case(name, partial(_load, release), str(release), after=partial(_kept_to_itself, canary))


def _kept_to_itself(canary: Path) -> None:
    assert not canary.exists(), "it was executed"


def test_a_hostile_config_is_refused_in_a_sentence(trained: Path, tmp_path: Path, amount: Callable[[int], int]) -> None:
    judge(hostile_configs, tmp_path, trained / "release", amount(200))


def _secret_is_kept(folder: Path) -> None:
    """Loads a release; neither what it holds nor what is said of it may be the secret."""
    try:
        told = str(load_release(folder).config)
    except ValueError as error:
        told = str(error)
        raise
    finally:
        if SECRET in told:
            raise LookupError("the secret is told")


def hostile_texts(folder: Path, good: Path, count: int) -> Iterator[Case]:
    """Config files that are no plain YAML."""
    release = folder / "release"
    shutil.copytree(good, release, dirs_exist_ok=True)
    path = release / "config.yaml"
    text = path.read_text()
    os.environ["A_SECRET"] = SECRET
    canary = folder / "canary"
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{k}: &a{k} [{', '.join(9 * [f'*a{k - 1}'])}]\n" for k in range(1, 12))
    strange = {
        "empty": "", "a list": "- 1\n", "a word": "hello", "tabs": "\tx: 1", "a bomb": bomb,
        "a bomb within": text + bomb,
        "deep": "a: " + "[" * 5000 + "]" * 5000, "deep maps": text + "z: " + "{a: " * 3000 + "1" + "}" * 3000,
        "python": text + f"z: !!python/object/apply:os.system ['touch {canary}']\n", "cycle": text + "z: &z [*z]\n",
        "python name": text + "z: !!python/name:os.system\n", "merge": text + "z: &z {<<: *z}\n",
        "twice": text + text, "nulls": text + "\0", "long": text + "z: " + "x" * 5_000_000 + "\n",
        "secret": text.replace("kind: responder", "kind: responder\nnote: ${oc.env:A_SECRET}"),
        "secret in a number": text.replace("fps: 25", "fps: ${oc.env:A_SECRET}"),
        "decode": text + "z: ${oc.decode:'1'}\n", "create": text + "z: ${oc.create:{a: 1}}\n",
        "circle": text + "z: ${y}\ny: ${z}\n", "hydra": text + "z: ${hydra:runtime.cwd}\n",
    }  # fmt: skip
    for name, changed in strange.items():
        path.write_text(changed)
        yield Case(name, partial(_secret_is_kept, release), str(release), after=partial(_kept_to_itself, canary))
    for seed in range(count):
        how, data = damaged(text.encode(), seed)
        path.write_bytes(data)
        yield Case(f"config.yaml {seed} ({how})", partial(read_config, release), str(release))
    path.unlink()
    for make in (
        path.mkdir,
        partial(os.mkfifo, path),
        partial(path.symlink_to, "/etc/passwd"),
        partial(path.symlink_to, path),
    ):
        make()
        yield Case(
            f"config.yaml made by {getattr(make, 'func', make)}", partial(_load, release), str(release), must="fail"
        )
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def test_a_config_that_is_no_plain_yaml_is_refused(trained: Path, tmp_path: Path, amount: Callable[[int], int]) -> None:
    judge(hostile_texts, tmp_path, trained / "release", amount(200))


def hostile_weights(folder: Path, good: Path, count: int) -> Iterator[Case]:
    """Damaged safetensors, and some with strange headers or values, of the responder and of both tokenizers."""
    release = folder / "release"
    shutil.copytree(good, release, dirs_exist_ok=True)
    for place in ("model.safetensors", "video_vae/model.safetensors", "audio_codec/model.safetensors"):
        path, tensors = release / place, load_file(good / place)
        kept = path.read_bytes()
        for seed in range(count):
            how, data = damaged(kept, seed)
            path.write_bytes(data)
            yield Case(f"{place} {seed} ({how})", partial(read_weights, path.parent), str(release))
        for name, value in (("NaN", torch.nan), ("infinite", torch.inf)):
            spoilt = {key: tensor.clone() for key, tensor in tensors.items()}
            floating = [tensor for tensor in spoilt.values() if tensor.is_floating_point()]
            floating[-1].view(-1)[-1] = value
            save_file(spoilt, path)
            yield Case(f"{place}: one value is {name}", partial(_load, release), str(release), must="fail")
        for name, data in _strange_files(kept).items():
            path.write_bytes(data)
            yield Case(f"{place}: {name}", partial(_load, release), str(release), must="fail")
        path.unlink()
        yield Case(f"{place}: missing", partial(_load, release), str(release), must="fail")
        for target in ("/etc/passwd", "/dev/zero", str(path)):
            path.symlink_to(target)
            yield Case(f"{place}: a link to {target}", partial(_load, release), str(release), must="fail")
            path.unlink()
        path.write_bytes(kept)


def _strange_files(good: bytes) -> dict[str, bytes]:
    length = struct.unpack("<Q", good[:8])[0]
    header = good[8 : 8 + length]
    huge = header.replace(b'"shape":[', b'"shape":[1000000000,', 1)
    return {
        "empty": b"", "a huge header": struct.pack("<Q", 2**62) + good[8:], "no header": good[8:],
        "a header of lists": struct.pack("<Q", 20_000) + b"[" * 20_000, "absurd shape": struct.pack("<Q",
        len(huge)) + huge,
        "offsets beyond": good.replace(b'"data_offsets":[0,', b'"data_offsets":[9,'),
        "nothing in it": struct.pack("<Q", 2) + b"{}",
    }  # fmt: skip


def test_damaged_weights_are_refused(trained: Path, tmp_path: Path, amount: Callable[[int], int]) -> None:
    judge(hostile_weights, tmp_path, trained / "release", amount(130))


def hostile_tokenizers(folder: Path, good: Path, count: int) -> Iterator[Case]:
    """The tokenizers' own `config.json`, with absurd sizes."""
    import json

    release = folder / "release"
    shutil.copytree(good, release, dirs_exist_ok=True)
    chance = random.Random(0)
    for place in ("video_vae/config.json", "audio_codec/config.json"):
        path, kept = release / place, json.loads((good / place).read_text())
        paths = list(_leaves(kept))
        for number in range(count):
            value = chance.choice((*ABSURD, *VALUES[:20]))
            path.write_text(json.dumps(_with(kept, paths[number % len(paths)], value)))
            name = f"{place}: {paths[number % len(paths)]}={str(value)[:40]}"
            yield Case(name, partial(_load, release), str(release), must="fail")
        path.write_text(json.dumps(kept))


def test_a_hostile_tokenizer_is_refused(trained: Path, tmp_path: Path, amount: Callable[[int], int]) -> None:
    judge(hostile_tokenizers, tmp_path, trained / "release", amount(30))


def asked(folder: Path, good: Path, initiator: Path) -> Iterator[Case]:
    """Values that a responder can be built with, and not answer with: the question finds out."""
    release = folder / "release"
    shutil.copytree(good, release, dirs_exist_ok=True)
    config = yaml.safe_load((good / "config.yaml").read_text())
    for path, values in {("fps",): (1, 5, 10**9), ("size",): ([8, 8], [10**6, 10**6], [0, 0], [32], [33, 31])}.items():
        for value in values:
            (release / "config.yaml").write_text(yaml.safe_dump(_with(config, path, value)))
            act = partial(commands.answer, release, initiator, folder / "out.mp4")
            yield Case(f"{path[0]}={value}", act)


def test_an_absurd_working_rate_is_found_before_long_work(data: Path, trained: Path, tmp_path: Path) -> None:
    judge(asked, tmp_path, trained / "release", data / "initiator0.mp4")
