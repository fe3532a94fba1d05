"""A release goes to the Hub and comes back, by the real client and a Hub on this machine."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import HfApi, constants
from typer.testing import CliRunner

from tests.local_hub import LocalHub, local_hub
from vidchat.bench.metric import Column
from vidchat.bench.results import Number, Result, ResultError, SystemResult
from vidchat.bench.table import format_number
from vidchat.cli import app
from vidchat.release import Release, ReleaseError, load_release
from vidchat.release.model_card import CardDetails, CardError
from vidchat.runtime.hub import HubError

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "demo"
FILES = [
    "audio_codec/config.json", "audio_codec/model.safetensors", "config.yaml", "model.safetensors",
    "video_vae/config.json", "video_vae/model.safetensors",
]  # fmt: skip


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    """The only Hub that the client knows, with an empty cache."""
    with local_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The release that ships, in a folder that holds other things too."""
    folder = tmp_path_factory.mktemp("made") / "release"
    shutil.copytree(SHIPPED, folder)
    (folder / "notes.txt").write_text("private")
    (folder / "samples").mkdir()
    (folder / "samples" / "data.json").write_text("{}")
    return load_release(folder)


def test_what_is_pushed_in_one_commit_is_what_loads(hub: LocalHub, release: Release) -> None:
    address = release.push_to_hub("ann/demo", CardDetails(license="apache-2.0"), api=HfApi(token="hf_x"))
    assert len(hub.commits) == 1
    ((number, files),) = hub.commits.items()
    assert address.endswith(f"/ann/demo/commit/{number}")
    assert sorted(files) == sorted(["README.md", *FILES])
    hub.commit("ann/demo", "main", {"evil.bin": pickle.dumps(print), "video_vae/x.py": b"1", "more/config.json": b"{}"})
    hub.asked.clear()
    loaded = load_release("ann/demo")
    fetched = {path.partition("/resolve/")[2].partition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert fetched == set(FILES), "nothing else is even asked for"
    ours, theirs = release.responder.state_dict(), loaded.responder.state_dict()
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())
    assert loaded.video_vae.fingerprint() == release.video_vae.fingerprint()


def test_a_revision_is_a_branch_of_its_own(hub: LocalHub, release: Release) -> None:
    api = HfApi(token="hf_x")
    release.push_to_hub("ann/demo@old", api=api)
    hub.commit("ann/demo", "main", {"config.yaml": b"kind: nothing"})
    assert load_release("ann/demo@old").config["fps"] == 25
    with pytest.raises(ReleaseError, match="not the config of a responder"):
        load_release("ann/demo")
    with pytest.raises(ReleaseError, match="no such revision; give one of its branches"):
        load_release("ann/demo@nowhere")


@pytest.mark.parametrize(
    ("status", "sentence"),
    [(401, "log in by `hf auth login`, or set HF_TOKEN"), (403, "make one with write access"), (404, "check the name")],
)
def test_a_refusal_is_one_sentence_with_the_way_out(
    hub: LocalHub, release: Release, status: int, sentence: str
) -> None:
    hub.status = status
    with pytest.raises(HubError, match=sentence) as caught:
        release.push_to_hub("ann/demo", api=HfApi(token="hf_x"))
    assert "\n" not in str(caught.value)
    if status != 403:
        with pytest.raises(ReleaseError, match=sentence):
            load_release("ann/demo")


def test_a_hub_out_of_reach_is_one_sentence(hub: LocalHub, release: Release) -> None:
    with local_hub() as gone:
        address = gone.address
    with pytest.raises(HubError, match=r"the Hub cannot be reached .*; connect"):
        release.push_to_hub("ann/demo", api=HfApi(endpoint=address, token="hf_x"))


def test_the_card_has_the_header_the_sizes_and_the_command(release: Release) -> None:
    card = release.model_card("ann/demo@v1", CardDetails(license="apache-2.0", data="3,000 rendered | dialogues"))
    _, header, text = card.split("---\n", 2)
    metadata = yaml.safe_load(header)
    facts = {"license": "apache-2.0", "library_name": "vidchat", "pipeline_tag": "any-to-any"}
    assert metadata.items() >= facts.items()
    count = sum(parameter.numel() for parameter in release.responder.parameters())
    steps = yaml.safe_load((SHIPPED / "config.yaml").read_text())["stage"]["steps"]
    for line in (
        f"| responder | {count / 1e6:.2f} M |",
        "| frames | 96x96 (height x width), 25 a second |",
        "| audio | 16000 Hz |",
        "| data | 3,000 rendered \\| dialogues |",
        f"| training | stage `sft_dyadic`, {steps} steps |",
        "vidchat infer initiator=CLIP.mp4 reference=FACE.png checkpoint=ann/demo@v1 output=ANSWER.mp4",
        'question = Question(reference=Path("FACE.png"), initiator=Path("CLIP.mp4"))',
        "arXiv:2507.09862",
        "# The demo model",
    ):
        assert line in text.splitlines() or line in text, line
    assert "\n\n\n" not in text
    compile(text.split("```python\n")[1].split("```")[0], "card", "exec")


def test_the_card_shows_the_figures_of_the_benchmark(release: Release, tmp_path: Path) -> None:
    number = Number(Column("FID", "lower"), "video quality", False, "metric=FID; pairs=2", 12.34, 10.0, 15.0, 2, 2)
    Result("dyadic", [{}, {}], "rule", [SystemResult("demo", [number], {})], []).write(tmp_path / "results.json")
    card = release.model_card("ann/demo", CardDetails(results=tmp_path / "results.json"))
    figures = card.partition("## Figures\n")[2].partition("\n## Limits\n")[0]
    assert "### video quality" in figures
    assert f"| demo | {format_number(number)} |" in figures
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ResultError, match="holds no results"):
        release.model_card("ann/demo", CardDetails(results=tmp_path / "results.json"))


def test_a_readme_with_a_header_is_the_card_and_no_details_are_lost(release: Release, tmp_path: Path) -> None:
    shutil.copytree(SHIPPED, tmp_path / "release")
    own = load_release(tmp_path / "release")
    runner, written = CliRunner(), tmp_path / "release" / "README.md"
    words = ["release", "card", str(tmp_path / "release"), "name=ann/demo", "license=mit", "-o", str(written)]
    assert runner.invoke(app, words).exit_code == 0
    assert written.read_text().startswith("---\nlicense: mit\n")
    written.write_text(written.read_text() + "by hand\n")
    assert own.model_card("ann/demo") == written.read_text()
    with pytest.raises(CardError, match=r"README\.md is a model card already"):
        own.model_card("ann/demo", CardDetails(license="apache-2.0"))


def test_the_command_pushes_what_the_folder_holds(hub: LocalHub, release: Release) -> None:
    ran = CliRunner().invoke(app, ["release", "push", str(release.folder), "ann/demo@new", "license=mit", "--private"])
    assert ran.exit_code == 0, ran.output
    (made,) = hub.made
    assert (made["name"], made["organization"], made["visibility"]) == ("demo", "ann", "private")
    files = hub.commits[hub.branches["ann/demo", "new"]]
    assert files["config.yaml"] == (SHIPPED / "config.yaml").read_bytes()
    assert b"checkpoint=ann/demo@new" in files["README.md"]
