"""The tiers: `sft` is what passes all five of the paper's thresholds, `pretrain` everything else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vidchat.data.manifest.speakervid.names import is_voice
from vidchat.dialogue import Tier

Missing = Literal["pretrain", "pass", "drop"]


@dataclass(frozen=True)
class TierSettings:
    """Thresholds that a clip of the SFT tier exceeds (SpeakerVid-5M, section on the SFT subset).

    Attributes:
        hand_blur: Mean sharpness of the hands, above this.
        face_blur: Mean sharpness of the face, above this.
        dover: DOVER's video quality, above this.
        motion: Motion score of the person, 1 to 5, above this.
        asr_confidence: Mean log probability of the transcript, above this; not asked of a silent person.
        missing: Treatment of a clip that lacks a score: pretrain puts it there, pass ignores the score, drop leaves the
            clip out.
        by: Basis of the tiers: the scores, or the release's own list (SFT_set.json). A tier that the source gives is
            kept.
    """

    hand_blur: float = 0.5
    face_blur: float = 0.7
    dover: float = 0.6
    motion: float = 2.0
    asr_confidence: float = -1.0
    missing: Missing = "pretrain"
    by: Literal["scores", "release"] = "scores"

    @property
    def thresholds(self) -> dict[str, float]:
        names = ("hand_blur", "face_blur", "dover", "motion", "asr_confidence")
        return {name: getattr(self, name) for name in names}


TIER_COLUMNS = ("hand_blur", "face_blur", "dover", "motion", "asr_confidence", "in_sft_list", "given_tier")


def is_silent(clip: Mapping[str, Any]) -> bool:
    """Returns whether the person of a clip is known to say nothing in it."""
    return bool(clip["listens"]) or (clip["voice"] is not None and not is_voice(clip["voice"]))


def tier_of(clip: Mapping[str, Any], settings: TierSettings, missing: Counter[str]) -> Tier | None:
    """Returns the tier of a row of the manifest, `None` if it is dropped; counts every score that it lacks by name."""
    if clip["given_tier"] is not None:
        return "sft" if clip["given_tier"] == "sft" else "pretrain"
    if settings.by == "release":
        return "sft" if clip["in_sft_list"] else "pretrain"
    asked = {name: low for name, low in settings.thresholds.items() if name != "asr_confidence" or not is_silent(clip)}
    lacking = [name for name in asked if clip[name] is None]
    missing.update(lacking)
    if lacking and settings.missing == "drop":
        return None
    good = all(clip[name] > low for name, low in asked.items() if clip[name] is not None)
    return "sft" if good and (not lacking or settings.missing == "pass") else "pretrain"
