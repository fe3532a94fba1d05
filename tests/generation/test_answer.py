from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from vidchat.bench.pairs import header
from vidchat.bench.responsiveness import read_log
from vidchat.cli import infer as infer_script
from vidchat.data.media.pixels import from_bytes, to_bytes
from vidchat.data.media.read import Media, MediaError, read_clip, write_clip
from vidchat.data.tokens.encoder import ClipEncoder, Segment
from vidchat.dialogue import Clip
from vidchat.generation import respond as respond_script
from vidchat.generation.answer import Question, QuestionError, answer, check_question, read_question
from vidchat.generation.conversation import Conversation, GenerationSettings
from vidchat.generation.heard import HeardStream, hear_clip
from vidchat.generation.respond import PairsError
from vidchat.generation.timing import Timing
from vidchat.model.generation_state import ChunkSampling

ROOT = Path(__file__).parents[2]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """An initiator's clip at other rates than the model's, and a reference of another size."""
    frames = torch.randint(256, (50, 3, 40, 60), dtype=torch.uint8)
    write_clip(tmp_path / "a.mp4", frames, 0.1 * torch.randn(50 * 1600), fps=30, sample_rate=48000)
    Image.new("RGB", (33, 47), (200, 30, 30)).save(tmp_path / "b.png")
    return {"initiator": tmp_path / "a.mp4", "reference": tmp_path / "b.png"}


SAMPLING = ChunkSampling(sets=2, flow_steps=2)
FIXED = GenerationSettings(chunks=3, ends=False, sampling=SAMPLING)
HEARD = math.floor((50 / 30 * 25 - 1) / 4)  # whole chunks of the initiator's clip


def read(path: Path, size: tuple[int, int] = (16, 16)) -> Media:
    return read_clip(Clip(path, ""), fps=25, size=size, sample_rate=16000)


def nearest(frames: torch.Tensor, candidates: torch.Tensor) -> list[int]:
    """Returns which candidate each frame is, compared without colour, which mp4 subsamples."""
    frames, candidates = frames.float().mean(1), candidates.float().mean(1)
    return (frames[:, None] - candidates[None]).abs().mean((2, 3)).argmin(1).tolist()


def test_from_files_to_a_file(release, files, tmp_path):
    question = Question(**files, text="hello", voice=files["initiator"], scores={"dover": 1.0})
    settings = GenerationSettings(chunks=6, ends=False, sampling=SAMPLING)
    timing = Timing()
    chunks = list(answer(release, question, settings, tmp_path / "out.mp4", timing))
    assert timing.duration == pytest.approx(6 * 0.16)
    assert 0 < timing.first_chunk <= timing.total
    log = timing.log()
    assert [chunk["media_s"] for chunk in log["chunks"]] == [0.16] * 6
    assert [chunk["ready_s"] for chunk in log["chunks"]] == sorted(chunk["ready_s"] for chunk in log["chunks"])
    assert log["real_time_factor"] == pytest.approx(log["chunks"][-1]["ready_s"] / (6 * 0.16), rel=1e-2)
    media = read(tmp_path / "out.mp4")
    assert len(media.frames) == 24 == sum(chunk.frames.shape[2] for chunk in chunks)
    made = torch.cat([to_bytes(chunk.frames[0]).transpose(0, 1) for chunk in chunks])
    assert nearest(media.frames, made) == list(range(24)), "every frame is written once and in order"


def test_an_answer_is_that_of_the_conversation_with_the_whole_clip(release, files, tmp_path):
    """The clip is heard chunk by chunk, as `Conversation.hear` does with its encoding."""
    question = Question(**files, text="hello")
    encoder = ClipEncoder(release.video_vae, release.audio_codec, 25, (16, 16))
    tokens = encoder.encode(encoder.read(Segment(Clip(files["initiator"], ""), "first", 1000)))[0]
    batch = read_question(release, question)
    conversation = Conversation(release.responder, release.video_vae, release.audio_codec, batch, FIXED)
    conversation.hear(tokens.latents[None, 1:], tokens.codes[None])
    assert conversation.step == HEARD
    chunks = answer(release, question, FIXED, tmp_path / "out.mp4")
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(conversation.answer(), chunks, strict=True))


def test_a_conversation_of_two_clips_shows_the_responder_all_the_time(release, files, tmp_path):
    """While it hears, first the reference and then the last frame of its answer stay, in silence."""
    question = Question(files["reference"], [files["initiator"]] * 2, text="hello")
    chunks = list(answer(release, question, FIXED, tmp_path / "out.mp4", film=tmp_path / "film.mp4"))
    media, film = read(tmp_path / "out.mp4"), read(tmp_path / "film.mp4", (16, 32))
    assert len(chunks) == 6
    assert len(media.frames) == len(film.frames) == 2 * (HEARD + 3) * 4
    red = torch.tensor([200, 30, 30], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    said = torch.cat([red, *(to_bytes(chunk.frames[0]).transpose(0, 1) for chunk in chunks)])
    expected = [0] * 4 * HEARD + [*range(1, 13)] + [12] * 4 * HEARD + [*range(13, 25)]
    assert nearest(media.frames, said) == nearest(film.frames[..., 16:], said) == expected
    silent = media.waveform.view(-1, 2560).abs().amax(1) < 1e-3
    first, second = silent[:HEARD], silent[HEARD + 4 : 2 * HEARD + 2]  # AAC spreads an edge a little
    assert first[:-1].all()
    assert second.all()
    assert not silent[HEARD : HEARD + 3].any()
    initiator = read(files["initiator"]).frames[1 : 4 * HEARD + 1]
    expected = [*range(4 * HEARD)] + [4 * HEARD - 1] * 12
    assert nearest(film.frames[..., :16], initiator) == 2 * expected, "who does not speak stays as they were"
    voice = read(files["initiator"]).waveform[640:][: HEARD * 2560]
    correlation = torch.corrcoef(torch.stack([film.waveform[: HEARD * 2560], voice]))[0, 1]
    assert correlation > 0.9, "both voices are heard"


def test_who_listens_is_generated_at_every_step(release, files, tmp_path):
    """What is shown beside the initiator's chunk t does not know it; after the clip, who asked waits for the answer."""
    question = Question(files["reference"], [files["initiator"]] * 2, text="hello", listen=True)
    chunks = list(answer(release, question, FIXED, tmp_path / "out.mp4"))
    assert len(chunks) == 2 * (HEARD + 3)
    assert len(read(tmp_path / "out.mp4").frames) == 4 * len(chunks)
    batch = read_question(release, question)
    conversation = Conversation(release.responder, release.video_vae, release.audio_codec, batch, FIXED)
    stream = HeardStream(release.video_vae, release.audio_codec, release.clock)
    clip = Clip(files["initiator"], "")
    heard = list(islice(hear_clip(clip, stream, release.clock, (16, 16), audio=True, waits=True), HEARD + 3))
    expected = [conversation.tick()]
    for _ in range(2):
        expected += [conversation.tick(step.chunk) for step in heard]
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(chunks, expected[:-1], strict=True))


@pytest.mark.parametrize("listen", [True, False])
def test_answers_end_by_themselves(release, files, tmp_path, listen):
    """Who listens goes on until the clip is over, whatever the model says of an end."""
    release.responder.end.weight.data.zero_()
    release.responder.end.bias.data.fill_(torch.tensor(0.4).logit())
    question = Question(**files, text="hello", listen=listen)
    settings = GenerationSettings(chunks=50, sampling=SAMPLING)
    chunks = list(answer(release, question, settings, tmp_path / "out.mp4"))
    assert len(chunks) == 2 + listen * HEARD, "0.6 > 0.5 > 0.6^2"


def test_a_model_that_hears_may_speak_first(release, files, tmp_path):
    """Nothing need be heard."""
    for listen in (True, False):
        question = Question(files["reference"], text="hello", listen=listen)
        assert len(list(answer(release, question, FIXED, tmp_path / "out.mp4"))) == 3


def test_a_question_becomes_a_batch(release, files):
    """Scores, voice and the reference have the values of the question; absent inputs are masked."""
    full = read_question(release, Question(**files, text="hello", voice=files["initiator"], scores={"dover": 1.5}))
    partial = read_question(release, Question(**files, text="hello"))
    assert full.heard_steps is None
    assert (full.steps.tolist(), full.stills.tolist()) == ([[0]], [[True]])
    present, absent = full.conditions, partial.conditions
    assert present["scores"].values.tolist() == [[1.5]]
    assert present["scores"].mask.all()
    assert not absent["scores"].mask.any()
    assert present["voice"].mask.all()
    assert present["voice"].values.unique().numel() > 1
    assert not absent["voice"].mask.any()
    assert present["text"].values.shape == present["text"].mask.shape == (1, 5)
    colour = torch.tensor([200, 30, 30]).view(1, 3, 1, 1, 1).expand(1, 3, 1, 16, 16) / 127.5 - 1
    torch.testing.assert_close(full.latents, release.video_vae.encode(colour).transpose(1, 2))


def test_bytes_become_frames_from_minus_1_to_1():
    bytes_ = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    frames = from_bytes(bytes_)
    assert frames.shape == (1, 3, 1, 16, 16)
    assert (frames.min(), frames.max()) == (-1, 1)
    assert torch.equal(to_bytes(frames), bytes_.transpose(0, 1)[None])
    assert to_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_what_is_heard_of_one_time_shares_a_chunk(release, tmp_path):
    """Latents of frames 4(t-1)+1 .. 4t and codes of the same time: here a flash and a noise."""
    frames = torch.zeros(41, 3, 16, 16, dtype=torch.uint8)
    waveform = torch.zeros(41 * 640)
    quiet = tmp_path / "quiet.mp4"
    write_clip(quiet, frames, waveform, 25, 16000)
    frames[21:25] = 255  # chunk 6
    waveform[21 * 640 + 700 : 25 * 640 - 1400] = 0.5 * torch.randn(4 * 640 - 2100)
    loud = tmp_path / "loud.mp4"
    write_clip(loud, frames, waveform, 25, 16000)
    (before, before_codes), (after, after_codes) = (heard_tokens(release, Clip(clip, "")) for clip in (quiet, loud))
    video_change = (before - after).abs().flatten(1).amax(-1)
    audio_changed = (before_codes != after_codes).flatten(1).any(-1)
    assert int(video_change.argmax()) == 5
    assert video_change[5] > 5 * torch.cat([video_change[:5], video_change[6:]]).max()
    assert audio_changed[5]
    assert not audio_changed[:3].any(), "the encoder looks one window ahead at most"


def heard_tokens(release, clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    stream = HeardStream(release.video_vae, release.audio_codec, release.clock)
    steps = list(hear_clip(clip, stream, release.clock, (16, 16), audio=True))
    return torch.cat([step.chunk.latents for step in steps]), torch.cat([step.chunk.codes for step in steps])


def test_a_span_of_a_file_is_encoded_as_the_same_span_in_a_file_of_its_own(release, tmp_path):
    """One long file holds two turns of the initiator; the question is the second."""
    noise = torch.Generator().manual_seed(2)
    frames = torch.randint(256, (60, 3, 16, 16), generator=noise, dtype=torch.uint8).repeat_interleave(2, 0)
    waveform = 0.1 * torch.randn(120 * 640, generator=noise)
    write_clip(tmp_path / "long.mp4", frames, waveform, 25, 16000)
    turn = Clip(tmp_path / "long.mp4", "ann", start=2.0, end=3.16)
    cut = read_clip(turn, fps=25, size=(16, 16), sample_rate=16000)
    write_clip(tmp_path / "cut.mp4", cut.frames, cut.waveform, 25, 16000)
    clips = (Clip(tmp_path / "long.mp4", ""), turn, Clip(tmp_path / "cut.mp4", ""))
    whole, span, alone = (heard_tokens(release, clip)[0] for clip in clips)
    assert (len(whole), len(span), len(alone)) == (29, 7, 7)
    distances = [(span - other).abs().mean() for other in (alone, whole[:7])]
    assert distances[0] < 0.5 * distances[1], "mp4 compression changes it a little; another span is far away"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": None}, "text="),
        ({"scores": {"beauty": 1.0}}, "beauty"),
    ],
)
def test_a_question_without_a_required_input_is_refused(release, files, change, message):
    with pytest.raises(QuestionError, match=message):
        check_question(release, Question(**{**files, "text": "hello", **change}))


def test_missing_empty_and_short_files_are_refused(release, files, tmp_path):
    with pytest.raises(MediaError, match="does not exist"):
        check_question(release, Question(tmp_path / "no.png", files["initiator"], "x"))
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(MediaError, match="empty"):
        read_question(release, Question(files["reference"], tmp_path / "empty.mp4", "x"))
    write_clip(tmp_path / "short.mp4", torch.zeros(3, 3, 16, 16, dtype=torch.uint8), torch.zeros(1920), 25, 16000)
    with pytest.raises(MediaError, match="fewer than 5 frames"):
        list(answer(release, Question(files["reference"], tmp_path / "short.mp4", "x"), FIXED, tmp_path / "o.mp4"))
    assert not (tmp_path / "o.mp4").exists()


def infer(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "infer.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_the_command_answers(release_folder, files, tmp_path, precision):
    done = infer(
        f"initiator={files['initiator']}", f"reference={files['reference']}", f"checkpoint={release_folder}",
        f"output={tmp_path / 'out.mp4'}", "text=hello", "seconds=0.5", "settings.ends=false", "device=cpu",
        f"precision={precision}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(read_clip(Clip(tmp_path / "out.mp4", ""), fps=25, size=(16, 16), sample_rate=16000).frames) == 16


def test_bf16_converts_the_responder_only_and_its_answer_is_close(release_folder, files, tmp_path, monkeypatch):
    """The first chunk is compared, before small differences change the answer."""
    answers = []

    def recorded(release, *arguments):
        answers.append((release, list(answer(release, *arguments))))
        return answers[-1][1]

    monkeypatch.setattr(respond_script, "answer", recorded)
    for precision in ("auto", "bf16"):
        words = [f"{name}={path}" for name, path in files.items()]
        words += ["text=hello", "seconds=0.3", f"checkpoint={release_folder}", f"output={tmp_path / 'out.mp4'}"]
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            infer_script.answer_question(compose("infer", [*words, "device=cpu", f"precision={precision}"]))
    (full, first), (half, second) = answers
    assert {x.dtype for x in full.responder.parameters()} == {torch.float32}
    assert half.responder.backbone.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert {x.dtype for tokenizer in (half.video_vae, half.audio_codec) for x in tokenizer.parameters()} == {
        torch.float32
    }
    assert torch.equal(first[0].codes, second[0].codes)
    distance = (first[0].latents - second[0].latents).norm() / first[0].latents.norm()
    assert 0 < distance < 3e-2
    assert second[0].frames.dtype == second[0].waveform.dtype == torch.float32


def test_answers_of_a_release_share_their_graphs(release, files, tmp_path, monkeypatch):
    """They are captured once, so that the first chunk of a later answer does not wait."""
    question, generate_chunk, used = Question(**files, text="hello"), release.responder.generate_chunk, []
    monkeypatch.setattr(
        release.responder, "generate_chunk", lambda *args: used.append(args[-1]) or generate_chunk(*args)
    )
    settings = GenerationSettings(chunks=1, sampling=SAMPLING)
    for _ in range(2):
        list(answer(release, question, settings, tmp_path / "out.mp4"))
    assert [loops is release.graphs for loops in used] == [True, True]
    addresses = [parameter.data_ptr() for parameter in release.responder.parameters()]
    assert [address for address, _ in release.graphs._weights] == addresses, (
        "the graphs hold the addresses of the weights"
    )


def test_every_pair_of_a_bench_is_answered_once_with_a_log(release_folder, files, tmp_path, monkeypatch):
    questions = []

    def recorded(release, question, *arguments, **named):
        questions.append(question)
        return answer(release, question, *arguments, **named)

    monkeypatch.setattr(respond_script, "answer", recorded)
    truth = {"clip": "a.mp4", "speaker": "b", "text": "hello", "start": 1 / 30, "end": 1 / 30 + 0.32}
    pair = {"reference": "b.png", "initiator": {"clip": "a.mp4", "speaker": "a", "start": 0.5, "end": 1.5}}
    pair["truth"] = truth
    lines = [{"id": name, **pair} for name in ("one", "two")]
    lines[1]["truth"] = truth | {"end": truth["start"] + 0.64}
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(line) for line in [header(0.32, (16, 16)), *lines]))
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        words = [f"pairs={tmp_path}", f"checkpoint={release_folder}", f"output={tmp_path / 'out'}", "device=cpu"]
        config = compose("infer", words)
    infer_script.answer_pairs(config)
    spans = {(q.initiator.path.name, q.initiator.start, q.initiator.end) for q in questions}
    assert spans == {("a.mp4", 0.5, 1.5)}, "the span of the initiator's file that the pair names"
    clips = sorted((tmp_path / "out").glob("*.mp4"))
    assert [clip.name for clip in clips] == ["one.mp4", "two.mp4"]
    lengths = [len(read_clip(Clip(clip, ""), fps=25, size=(16, 16), sample_rate=16000).frames) for clip in clips]
    assert lengths == [8, 8], "the benchmark's length, not that of the true answer"
    assert {q.text for q in questions} == {"hello"}
    log_file = tmp_path / "out" / "one.json"
    log, problem = read_log(log_file)
    assert json.loads(log_file.read_text())["precision"] == "fp32"
    assert json.loads(log_file.read_text())["protocol"] == "conditioned"
    assert log["first chunk s"] > 0
    assert not problem
    clips[1].unlink()
    written = clips[0].stat().st_mtime_ns
    infer_script.answer_pairs(config)
    assert clips[1].is_file()
    assert clips[0].stat().st_mtime_ns == written, "an answered pair is not answered again"
    lines[0]["initiator"]["start"] = 0.6
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(line) for line in [header(0.32, (16, 16)), *lines]))
    infer_script.answer_pairs(config)
    assert clips[0].stat().st_mtime_ns != written, "a pair whose question changed is answered again"
    config.seconds = 3.0
    with pytest.raises(QuestionError, match="the benchmark fixes the length"):
        infer_script.answer_pairs(config)


def test_pairs_that_cannot_be_answered_are_skipped_and_named(release_folder, files, tmp_path, caplog):
    """One has no text and one a broken clip: the third is answered, and the error names the other two."""
    (tmp_path / "broken.mp4").write_bytes(b"no clip" * 100)
    pair = {"reference": "b.png", "initiator": {"clip": "a.mp4", "speaker": "a"}}
    truth = {"clip": "a.mp4", "speaker": "b", "start": 0.0, "end": 0.32}
    broken = {"clip": "broken.mp4", "speaker": "a"}
    lines = [
        {"id": "wordless", **pair, "truth": truth},
        {"id": "torn", **pair, "initiator": broken, "truth": truth | {"text": "hi"}},
        {"id": "whole", **pair, "truth": truth | {"text": "hi"}},
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        words = [f"pairs={tmp_path}", f"checkpoint={release_folder}", f"output={tmp_path / 'out'}", "device=cpu"]
        config = compose("infer", words)
    with pytest.raises(PairsError, match=r"^2 of 3 pairs have no answer.*: wordless, torn; "):
        infer_script.answer_pairs(config)
    assert [clip.name for clip in (tmp_path / "out").glob("*.mp4")] == ["whole.mp4"]
    assert [record.args[0] for record in caplog.records if "skipped pair" in record.message] == ["wordless", "torn"]


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "is a folder without config.yaml"), (["precision=fp16"], "precision=fp16 is unknown; give auto, fp32 or")],
)
def test_the_command_fails_with_one_sentence(tmp_path, words, message):
    done = infer("reference=x.png", f"output={tmp_path / 'o.mp4'}", f"checkpoint={tmp_path}", *words)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.strip().startswith("error: ")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_ignored_inputs_cause_a_warning(release, files, caplog, monkeypatch):
    read_question(release, Question(files["reference"], files["initiator"], text="hello"))
    assert not [record for record in caplog.records if "is ignored" in record.message]
    conditions = release.responder.conditions
    for name in ("text", "voice"):
        monkeypatch.delitem(conditions.embeddings._modules, name)
    read_question(release, Question(files["reference"], files["initiator"], text="hello", voice=files["initiator"]))
    messages = [record.getMessage() for record in caplog.records if "is ignored" in record.message]
    assert messages == [f"{name}= is ignored: this model was trained without it" for name in ("text", "voice")]
