"""Which measures are taken: for each dimension the canonical one if its weights are given, else its proxy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vidchat.bench.faces import Centred, Detected, FaceFinder
from vidchat.bench.fidelity import Fidelity
from vidchat.bench.measure import BackendError, Measure


@dataclass(frozen=True)
class Backends:
    """Weights that the user has, as files, or as folders or Hub names where it says model. `None` takes the proxy.

    Attributes:
        face: RFB-320 ONNX file; else the face is taken to be in the middle.
        inception: FID's TorchScript file.
        i3d: FVD's TorchScript file.
        videomae: CD-FVD's checkpoint; an extra column.
        arcface: ArcFace ONNX file; needs `scrfd`.
        scrfd: SCRFD ONNX file.
        syncnet: `syncnet_v2.model`.
        whisper: Model that hears; with `clip` or `sentence`.
        clip: CLIP model.
        sentence: Sentence encoder model.
        expression: `package.module:function` of expression coefficients.
        sim: `wavlm_large_finetune.pth`.
        xvector: Speaker model of transformers.
        dnsmos: `sig_bak_ovr.onnx`; extra columns.
        utmos: `utmos22_strong_step7459_v1.pt`; an extra column.
        frames: Of PSNR and SSIM, evenly; `None` for all.
        device: Where networks run.
    """

    face: Path | None = None
    inception: Path | None = None
    i3d: Path | None = None
    videomae: Path | None = None
    arcface: Path | None = None
    scrfd: Path | None = None
    syncnet: Path | None = None
    whisper: str | None = None
    clip: str | None = None
    sentence: str | None = None
    expression: str | None = None
    sim: Path | None = None
    xvector: str | None = None
    dnsmos: Path | None = None
    utmos: Path | None = None
    frames: int | None = None
    device: str = "cpu"

    def __call__(self) -> Sequence[Measure]:
        """Makes the measures, in the order of the table."""
        from vidchat.bench.listening import Listening
        from vidchat.bench.proxy.drift import LoudnessDrift, SharpnessDrift

        finder: FaceFinder = Detected(self.face) if self.face else Centred()
        return [
            *self._quality(),
            self._identity(finder),
            *self._coherence(),
            self._sync(finder),
            self._emotion(finder),
            *self._voice(),
            SharpnessDrift(),
            LoudnessDrift(),
            Listening(finder),
        ]

    def _quality(self) -> list[Measure]:
        from vidchat.bench.canonical.i3d import I3d
        from vidchat.bench.canonical.inception import Inception
        from vidchat.bench.canonical.videomae import VideoMae
        from vidchat.bench.proxy.random_features import RandomMotion, RandomPictures

        return [
            Inception(self.inception, device=self.device) if self.inception else RandomPictures(),
            I3d(self.i3d, device=self.device) if self.i3d else RandomMotion(),
            *([VideoMae(self.videomae, self.device)] if self.videomae else []),
            Fidelity(self.frames),
        ]

    def _identity(self, finder: FaceFinder) -> Measure:
        from vidchat.bench.canonical.arcface import ArcFace
        from vidchat.bench.proxy.identity import FaceLooks

        if (self.arcface is None) != (self.scrfd is None):
            raise BackendError("--arcface and --scrfd need each other: faces are aligned by landmarks")
        return ArcFace(self.arcface, self.scrfd) if self.arcface and self.scrfd else FaceLooks(finder)

    def _coherence(self) -> list[Measure]:
        from vidchat.bench.canonical.coherence import NearestByClip, NearestBySentence, Transcriber
        from vidchat.bench.proxy.coherence import NearestSpoken

        if self.whisper is None:
            if self.clip or self.sentence:
                raise BackendError("--clip and --sentence compare texts, so they need --whisper, which hears them")
            return [NearestSpoken()]
        if not (self.clip or self.sentence):
            raise BackendError("--whisper only hears; give --clip, --sentence or both")
        transcriber = Transcriber(self.whisper, self.device)
        measures: list[Measure] = [NearestByClip(transcriber, self.clip, self.device)] if self.clip else []
        return measures + ([NearestBySentence(transcriber, self.sentence, self.device)] if self.sentence else [])

    def _sync(self, finder: FaceFinder) -> Measure:
        from vidchat.bench.canonical.syncnet import SyncNet
        from vidchat.bench.proxy.sync import MouthAndLoudness

        return SyncNet(self.syncnet, finder, self.device) if self.syncnet else MouthAndLoudness(finder)

    def _emotion(self, finder: FaceFinder) -> Measure:
        from vidchat.bench.canonical.expression import ExpressionCoefficients
        from vidchat.bench.proxy.expression import ExpressionLines

        return ExpressionCoefficients(self.expression) if self.expression else ExpressionLines(finder)

    def _voice(self) -> list[Measure]:
        from vidchat.bench.canonical.dnsmos import Dnsmos
        from vidchat.bench.canonical.utmos import Utmos
        from vidchat.bench.canonical.voice import WavLmEcapa, XVector
        from vidchat.bench.proxy.voice import PitchAndTimbre

        measures: list[Measure] = [WavLmEcapa(self.sim, self.device)] if self.sim else []
        measures += [XVector(self.xvector, self.device)] if self.xvector else []
        quality: list[Measure] = [Dnsmos(self.dnsmos)] if self.dnsmos else []
        quality += [Utmos(self.utmos, self.device)] if self.utmos else []
        return (measures or [PitchAndTimbre()]) + quality
