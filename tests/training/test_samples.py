"""Samples replay the layout of a dialogue: what was heard is heard at its steps, and turns are generated at theirs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.generation.conftest import release, release_folder  # noqa: F401
from tests.model.test_one_clock import LAYOUTS
from vidchat.batch import ChunkBatch, ConditionValues
from vidchat.generation.conversation import Conversation, GenerationSettings
from vidchat.layout import lay_out
from vidchat.model.generation_state import Chunk, ChunkSampling
from vidchat.release import Release
from vidchat.training.samples import replay

SETTINGS = GenerationSettings(1, ends=False, sampling=ChunkSampling(sets=2, flow_steps=2, noise_level=0))


def dialogue(name: str, padding: int = 2) -> ChunkBatch:
    """One dialogue of a layout, with padded columns."""
    layout = lay_out(LAYOUTS[name])
    said, heard = len(layout.said), len(layout.heard)
    columns = torch.arange(said + padding)[None]
    audible = torch.arange(heard + padding)[None] < heard
    return ChunkBatch(
        latents=torch.randn(1, said + padding, 4, 2, 2),
        steps=torch.tensor([[place.step for place in layout.said] + [0] * padding]),
        stills=torch.tensor([[place.chunk == 0 for place in layout.said] + [False] * padding]),
        mask=columns < said,
        codes=torch.randint(16, (1, said + padding, 8, 2)),
        heard_latents=torch.randn(1, heard + padding, 4, 2, 2),
        heard_codes=torch.randint(16, (1, heard + padding, 8, 2)),
        heard_steps=torch.tensor([[place.step for place in layout.heard] + [0] * padding]),
        heard_video=audible,
        heard_audio=audible,
        conditions={
            "text": ConditionValues(torch.zeros(1, 3).long(), torch.ones(1, 3, dtype=torch.bool)),
            "voice": ConditionValues(torch.zeros(1, 1, 8, 2).long(), torch.zeros(1, 1, dtype=torch.bool)),
            "scores": ConditionValues(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.bool)),
        },
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_sample_has_the_layout_of_its_dialogue(
    release: Release,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    batch, model = dialogue(name), release.responder
    read_step, steps = model.read_step, {}

    def recorded(state, said=None, heard=None, *rest):  # type: ignore[no-untyped-def]
        steps[state.step + 1] = (said, heard)
        return read_step(state, said, heard, *rest)

    monkeypatch.setattr(model, "read_step", recorded)
    conversation = Conversation(model, release.video_vae, release.audio_codec, batch, SETTINGS)
    chunks = iter(list(replay(conversation, batch)))
    count = int(batch.mask.sum())
    for k in range(1, count):
        step = int(batch.steps[0, k])
        chunk = None if batch.stills[0, k] else next(chunks)
        if step not in steps:
            assert k == count - 1, "nothing follows the last chunk, so it is not read"
            continue
        said: Chunk = steps[step][0]
        assert said.still == bool(batch.stills[0, k])
        assert torch.equal(said.latents, batch.latents[:, k] if chunk is None else chunk.latents)
    assert next(chunks, None) is None
    for k in range(int(batch.heard_video.sum())):
        if (step := int(batch.heard_steps[0, k])) in steps:
            heard: Chunk = steps[step][1]
            assert torch.equal(heard.latents, batch.heard_latents[:, k])
            assert torch.equal(heard.codes, batch.heard_codes[:, k])
    assert sum(heard is not None for _, heard in steps.values()) == sum(
        step < int(batch.steps.max()) for step in batch.heard_steps[0, : int(batch.heard_video.sum())]
    )


def test_an_unseen_or_silent_talker_is_heard_as_such(release: Release) -> None:  # noqa: F811
    batch = dialogue("dialogue")
    for missing in ("video", "audio"):
        half = replace(batch, **{f"heard_{missing}": torch.zeros_like(batch.heard_video)})
        none = replace(half, **{"heard_latents" if missing == "video" else "heard_codes": None})
        parts = (release.responder, release.video_vae, release.audio_codec)
        first, second, full = (next(replay(Conversation(*parts, b, SETTINGS), b)) for b in (half, none, batch))
        assert torch.equal(first.latents, second.latents)
        assert not torch.equal(first.latents, full.latents)
