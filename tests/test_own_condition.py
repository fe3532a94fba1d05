"""The condition of docs/own-condition.md, one file and one yaml: trained, released and used."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.generation.test_sampling import composed
from tests.test_train import config, folder  # noqa: F401  (a fixture)
from vidchat import registry
from vidchat.cli import train as train_script
from vidchat.cli.infer import answer_question
from vidchat.cli.overrides import override
from vidchat.generation.answer import Question, QuestionError, check_question, read_question
from vidchat.generation.conversation import Conversation, GenerationSettings
from vidchat.model.generation_state import ChunkSampling
from vidchat.release import Release, ReleaseError, load_release

PAGE = Path(__file__).parents[1] / "docs" / "own-condition.md"
POSES = {0: [0.3, 0, 0], 1: None, 2: [0, -0.2, 0.1]}  # of the answers in dialogues 0, 1 and 2


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the page, written to an importable folder with configs."""
    monkeypatch.setattr(registry, "_builders", dict(registry._builders))
    for name, code in re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mylab", raising=False)
    return tmp_path


def with_poses(root: Path) -> None:
    """Writes the poses of the answers into the manifest of a folder."""
    lines = [json.loads(line) for line in (root / "dialogues.jsonl").read_text().splitlines()]
    for line, pose in zip(lines, POSES.values(), strict=True):
        line["turns"][1] |= {"truth": {} if pose is None else {"head_pose": pose}}
    (root / "dialogues.jsonl").write_text("\n".join(map(json.dumps, lines)))


def first_latents(release: Release, question: Question) -> torch.Tensor:
    batch, settings = read_question(release, question), GenerationSettings(1, sampling=ChunkSampling(2, 2))
    conversation = Conversation(release.responder, release.video_vae, release.audio_codec, batch, settings)
    return next(conversation.answer()).latents


def test_a_head_pose_conditions_answers(
    lab: Path,
    folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_poses(folder)
    import mylab

    seen, weights, forward = [], [], mylab.PoseEmbedding.forward

    def recording(self: torch.nn.Module, values: torch.Tensor, chunks: object) -> torch.Tensor:
        seen.append(values.flatten(1))
        weights.append(self.project.weight.detach().clone())  # type: ignore[union-attr]
        return forward(self, values, chunks)

    monkeypatch.setattr(mylab.PoseEmbedding, "forward", recording)
    words = [f"hydra.searchpath=[file://{lab}/configs]", "condition=dyadic_pose", "stage.tier=null"]
    exported = train_script.train(config(folder, tmp_path / "run", "sft_dyadic", *words))
    poses = {tuple(round(angle, 3) for angle in row) for batch in seen for row in batch.tolist()}
    assert poses == {(0.3, 0, 0), (0, 0, 0), (0, -0.2, 0.1)}, "the poses of the manifest, and masked zeros without one"
    assert "mylab.HeadPose" not in (exported / "config.yaml").read_text(), "a release speaks in names"

    registry._builders.pop("mylab/head_pose")
    monkeypatch.delitem(sys.modules, "mylab")
    with pytest.raises(ReleaseError, match=r"needs the package mylab, .*trust=\[mylab\]"):
        load_release(exported)
    assert "mylab" not in sys.modules, "no code of the package ran"

    release = load_release(exported, trust=["mylab"])
    project = release.responder.conditions.embeddings["head_pose"].project
    assert not torch.equal(project.weight, weights[0]), "the embedding was trained"
    with torch.no_grad():  # two steps teach little
        project.weight.mul_(30)
    Image.new("RGB", (32, 32)).save(tmp_path / "face.png")
    questions = [
        Question(tmp_path / "face.png", folder / "initiator0.mp4", conditions=conditions)
        for conditions in ({"head_pose": [0.5, 0, 0]}, {"head_pose": [0, 0.5, 0]}, {})
    ]
    pose, other, none = (first_latents(release, question) for question in questions)
    assert not torch.equal(pose, other)
    assert not torch.equal(pose, none)
    assert not read_question(release, questions[2]).conditions["head_pose"].mask.any()
    with pytest.raises(QuestionError, match="give three angles"):
        check_question(release, Question(tmp_path / "face.png", questions[0].initiator, conditions={"head_pose": [1]}))
    for value, message in ((["a", 0, 0], "cannot be read"), (5, "cannot be read"), ([1, 2, float("nan")], "NaN")):
        question = Question(tmp_path / "face.png", questions[0].initiator, conditions={"head_pose": value})
        with pytest.raises(QuestionError, match=rf"conditions\.head_pose=.*{message}"):
            read_question(release, question)
    with pytest.raises(QuestionError, match="was trained without gaze; its conditions are head_pose"):
        check_question(release, Question(tmp_path / "face.png", questions[0].initiator, conditions={"gaze": 1}))

    paths = {"checkpoint": exported, "reference": tmp_path / "face.png", "initiator": questions[0].initiator}
    words = [override(key, path) for key, path in (paths | {"output": tmp_path / "out.mp4"}).items()]
    answer_question(composed("infer", *words, "conditions={head_pose: [0.3, 0, 0]}", "trust=[mylab]", "seconds=0.2",
                     "device=cpu"))  # fmt: skip
    assert (tmp_path / "out.mp4").is_file()
