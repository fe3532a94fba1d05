"""A stranger's release is refused in a sentence and at once, whatever it asks for; of the loader it reads nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from tests.release.test_release import config, made  # noqa: F401
from vidchat.release import Release, ReleaseError, load_release
from vidchat.runtime.untrusted import UntrustedError, no_larger_than, read_yaml
from vidchat.tokenizers.stacked import StackedVAE
from vidchat.tokenizers.weights import TokenizerError

HOSTILE = [10**7, -1, 0, 2**63, 1.5, "nan", None, [], {}, True, [10**7] * 3, "x" * 1000]


def replaced(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The same nested config with another value at one place."""
    if not path:
        return value
    if isinstance(node, list):
        return [replaced(one, path[1:], value) if k == path[0] else one for k, one in enumerate(node)]
    return {**node, path[0]: replaced(node[path[0]], path[1:], value)}


def leaves(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a nested config has values, each level's own included."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(leaf for key, value in pairs for leaf in leaves(value, (*path, key)))]


def test_whatever_stands_in_a_config_ends_in_a_sentence(made: tuple[Path, Release]) -> None:  # noqa: F811
    """Every value of a release's config and of its tokenizers' replaced by absurd ones: loaded, or refused by name."""
    folder, tried, refused = made[0], 0, list[str]()
    files = [folder / "config.yaml", folder / "video_vae" / "config.json", folder / "audio_codec" / "config.json"]
    for file in files:
        whole = OmegaConf.to_container(OmegaConf.load(file))
        kept = file.read_bytes()
        for number, path in enumerate(leaves(whole)):
            for value in HOSTILE[number % 6 :: 6]:
                file.write_text(json.dumps(replaced(whole, path, value)))  # JSON is YAML
                tried += 1
                try:
                    load_release(folder)
                except (ReleaseError, TokenizerError) as error:
                    refused.append(str(error))
        file.write_bytes(kept)
    assert tried > 100
    assert len(refused) > 0.6 * tried
    assert not [one for one in refused if "\n" in one]


@pytest.mark.parametrize("text", ["${oc.env:SECRET}", "a\\${oc.env:SECRET}", "${video_vae.name}", "${", "x ${now:%H}"])
@pytest.mark.parametrize("key", ["text_tokenizer.name", "stage.name", "video_vae.directory"])
def test_interpolations_are_refused(made: tuple[Path, Release], monkeypatch: pytest.MonkeyPatch, key, text) -> None:  # noqa: F811
    monkeypatch.setenv("SECRET", "s3cret")
    whole = OmegaConf.to_container(OmegaConf.load(made[0] / "config.yaml"))
    section, name = key.split(".")
    whole[section][name] = text  # type: ignore[index,call-overload]
    (made[0] / "config.yaml").write_text(json.dumps(whole))
    with pytest.raises(ReleaseError, match=r"interpolation .*environment") as caught:
        load_release(made[0])
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b]\n", "YAML aliases"),
        ("a: &a\n  <<: *a\n", "YAML aliases"),
        ("[" * 5000 + "]" * 5000, "more than 32 levels"),
        ("a: [1", "cannot be read"),
        ("a: 1\na: 2", "cannot be read"),
        ("? [a]\n: 1", "cannot be read"),
        ("n: " + "9" * 5000, "cannot be read"),
        ("a: " + "x" * (1 << 19), "more than 256 KiB"),
        ("a: !!python/object/apply:os.system [ls]", "cannot be read"),
        ("\x00", "cannot be read"),
    ],
)
def test_files_that_are_no_config_are_refused_at_once(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UntrustedError, match=message) as caught:
        read_yaml(tmp_path / "config.yaml")
    assert "\n" not in str(caught.value)


def test_numbers_are_read_as_numbers(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: 1e-3\nb: [true, null, 2]\nc: no ref $x\n")
    assert read_yaml(tmp_path / "config.yaml") == {"a": 1e-3, "b": [True, None, 2], "c": "no ref $x"}


def test_a_network_larger_than_its_weights_is_not_built(tmp_path: Path) -> None:
    """Neither one huge tensor, of which nothing may be allocated, nor endlessly many small ones."""
    StackedVAE(4, 8, [8], [1], [1]).save(tmp_path)
    weights, layers = tmp_path / "model.safetensors", 0
    with no_larger_than(weights):
        StackedVAE(4, 8, [8], [1], [1])
        assert len(torch.zeros(8)[2:].repeat(3)) == 18, "what is done to tensors that are there goes on"
    makes = [lambda: nn.Linear(10**6, 10**6), lambda: torch.arange(10**12), lambda: torch.zeros(10**12)]
    for make in (*makes, lambda: torch.ones(2).new_zeros(10**6, 10**6)):
        with pytest.raises(UntrustedError, match="far larger network"), no_larger_than(weights):
            make()

    def many() -> None:
        nonlocal layers
        for _ in range(10**7):
            nn.Linear(1, 1)
            layers += 1

    with pytest.raises(UntrustedError, match="far larger network"), no_larger_than(weights):
        many()
    assert layers < 1000
    nn.Linear(100, 100)  # nothing of it stays behind
