"""A name stands for one builder, wherever its code lies; another package's name needs its trust."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from vidchat import registry
from vidchat.registry import UnknownName, WrongArguments, build, look_up, name_of, register
from vidchat.tokenizers.stacked import StackedVAE

FOREIGN = """
from pathlib import Path
from vidchat.registry import register
Path(__file__).with_suffix(".ran").touch()

@register("{package}/part")
class Part:
    def __init__(self, size, inner=None):
        self.size, self.inner = size, inner
"""


@pytest.fixture
def names(monkeypatch):
    """The registered names; what a test adds is gone after it."""
    monkeypatch.setattr(registry, "_builders", dict(registry._builders))
    return registry._builders


@pytest.fixture
def package(tmp_path, monkeypatch, names):
    """An importable package of somebody else's, and the file that shows that its code ran."""
    (tmp_path / "mylab_parts.py").write_text(FOREIGN.format(package="mylab_parts"))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "mylab_parts", tmp_path / "mylab_parts.ran"
    sys.modules.pop("mylab_parts", None)


def test_every_name_of_this_package_is_known_without_importing_it_first():
    tokenizers = "stacked_vae causal_vae packed_vae stft_codec encodec mimi bytes hub_tokenizer thinker"
    model = "responder transformer flow_head objective chunk_sampling code_sampling"
    for name in f"{tokenizers} {model}".split():
        assert name_of(look_up(name)) == name


def test_a_node_is_built_with_its_parts():
    part = {"type": "code_sampling", "temperature": 0.5}
    sampling = build({"type": "chunk_sampling", "codes": part, "sets": 3})
    assert sampling.sets == 3
    assert sampling.codes.temperature == 0.5
    assert build({"a": [part, 1], "b": None})["a"][0].temperature == 0.5


@pytest.mark.parametrize("value", [3, "x", [1], {}])
def test_a_value_where_a_section_belongs_is_named(value):
    with pytest.raises(WrongArguments, match="codes of chunk_sampling must hold keys of its own"):
        build({"type": "chunk_sampling", "codes": value})


def test_a_saved_tokenizer_is_built_by_loading_it(tmp_path: Path):
    StackedVAE(4, 8, [8], [1], [1]).save(tmp_path)
    assert isinstance(build({"type": "stacked_vae", "directory": str(tmp_path)}), StackedVAE)


@pytest.mark.parametrize("name", ["os.system", "builtins/eval", "Stacked", "../x", "a/b/c", "no_such_thing", ""])
def test_nothing_but_names_is_looked_up(name):
    with pytest.raises(UnknownName):
        look_up(name)


def test_a_package_that_is_not_trusted_is_not_imported(package):
    name, ran = package
    with pytest.raises(UnknownName, match=rf"trust=\[{name}\]"):
        build({"type": f"{name}/part", "size": 1})
    assert not ran.exists()


def test_a_trusted_package_registers_its_names(package):
    name, ran = package
    part = build({"type": f"{name}/part", "size": 1, "inner": {"type": f"{name}/part", "size": 2}}, trust=[name])
    assert ran.exists()
    assert (part.size, part.inner.size) == (1, 2)
    assert name_of(type(part)) == f"{name}/part"
    with pytest.raises(UnknownName, match="is this the version that made the release"):
        look_up(f"{name}/other", trust=[name])


@pytest.mark.parametrize("attribute", ["", ":Part"])
def test_an_installed_package_declares_its_names(package, monkeypatch, attribute):
    name, _ = package
    point = EntryPoint(name, name + attribute, registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    assert build({"type": f"{name}/part", "size": 1}).size == 1


def test_a_trusted_package_that_is_not_here_is_named(names):
    with pytest.raises(UnknownName, match="cannot be imported here"):
        look_up("no_such_lab/part", trust=["no_such_lab"])


def test_a_name_is_given_once_and_by_its_own_package(names):
    with pytest.raises(ValueError, match="cannot be a name"):
        register("Bad Name")
    mine = type("Mine", (), {"__module__": "mylab.vae"})
    with pytest.raises(ValueError, match="mylab/mine"):
        register("mine")(mine)
    other = type("Other", (), {"__module__": "vidchat.other"})
    with pytest.raises(ValueError, match="choose another"):
        register("bytes")(other)
    with pytest.raises(UnknownName, match=r"mylab\.vae\.Mine has no name"):
        name_of(mine)
