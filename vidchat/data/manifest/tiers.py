"""Tiers of clips: `sft` for those that pass all five of the paper's thresholds, `pretrain` for the others."""

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
        hand_blur: Lower bound of the mean sharpness of the hands.
        face_blur: Lower bound of the mean sharpness of the face.
        dover: Lower bound of DOVER's video quality.
        motion: Lower bound of the person's motion score, 1 to 5.
        asr_confidence: Lower bound of the transcript's mean log probability; not needed of a silent person.
        missing: Treatment of a clip that lacks a score: pretrain assigns that tier, pass ignores the score, drop leaves
            the clip out.
        by: Basis of the tiers: the scores, or the release's own list (SFT_set.json). Tiers given by the source are
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
    """Returns the tier of a row of the manifest, `None` if it is dropped; adds its missing scores to `missing`."""
    if clip["given_tier"] is not None:
        return "sft" if clip["given_tier"] == "sft" else "pretrain"
    if settings.by == "release":
        return "sft" if clip["in_sft_list"] else "pretrain"
    needed = {name: low for name, low in settings.thresholds.items() if name != "asr_confidence" or not is_silent(clip)}
    lacking = [name for name in needed if clip[name] is None]
    missing.update(lacking)
    if lacking and settings.missing == "drop":
        return None
    passes = all(clip[name] > low for name, low in needed.items() if clip[name] is not None)
    return "sft" if passes and (not lacking or settings.missing == "pass") else "pretrain"
