"""Selects the metrics: for each dimension the canonical one if its weights are given, else its proxy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vidchat.bench.faces import CentredFace, FaceDetector, FaceFinder
from vidchat.bench.fidelity import Fidelity
from vidchat.bench.metric import BackendError, Metric


@dataclass(frozen=True)
class Backends:
    """Published weights of the metrics; a metric without its weights is replaced by a proxy.

    Attributes:
        inception: Weights for FID, inception-2015-12-05.pt (TorchScript).
        i3d: Weights for FVD, i3d_torchscript.pt of StyleGAN-V.
        videomae: Weights for CD-FVD, vit_g_hybrid_pt_1200e_ssv2_ft.pth; an extra column.
        arcface: Weights for identity, w600k_r50.onnx; needs scrfd.
        scrfd: Landmark detector for ArcFace, det_10g.onnx.
        whisper: Speech recogniser for coherence, a folder or Hub name; needs clip, sentence or both.
        clip: CLIP model for coherence, a folder or Hub name; needs whisper.
        sentence: Sentence encoder for coherence, a folder or Hub name; needs whisper.
        syncnet: Weights for audio-visual sync, syncnet_v2.model.
        expression: Function that returns expression coefficients for the emotion FID, as package.module:function.
        sim: Weights for SIM-o, UniSpeech's wavlm_large_finetune.pth.
        xvector: Speaker model of transformers for the voice, a folder or Hub name; another column.
        dnsmos: Weights for DNSMOS, sig_bak_ovr.onnx; extra columns.
        utmos: Weights for UTMOS, utmos22_strong_step7459_v1.pt; an extra column.
        face: Face detector, RFB-320 as ONNX; null takes the middle of the frame.
        video_frames: Number of video frames of each clip, evenly spaced, for PSNR and SSIM; null takes all.
        device: Device of the networks.
    """

    inception: Path | None = None
    i3d: Path | None = None
    videomae: Path | None = None
    arcface: Path | None = None
    scrfd: Path | None = None
    whisper: str | None = None
    clip: str | None = None
    sentence: str | None = None
    syncnet: Path | None = None
    expression: str | None = None
    sim: Path | None = None
    xvector: str | None = None
    dnsmos: Path | None = None
    utmos: Path | None = None
    face: Path | None = None
    video_frames: int | None = None
    device: str = "cpu"

    def __call__(self) -> Sequence[Metric]:
        """Builds the metrics, in the order of the table."""
        from vidchat.bench.listening_metric import Listening
        from vidchat.bench.proxy.drift import LoudnessDrift, SharpnessDrift

        finder: FaceFinder = FaceDetector(self.face) if self.face else CentredFace()
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

    def _quality(self) -> list[Metric]:
        from vidchat.bench.canonical.i3d import I3d
        from vidchat.bench.canonical.inception import Inception
        from vidchat.bench.canonical.videomae import VideoMae
        from vidchat.bench.proxy.random_features import RandomFrames, RandomMotion

        return [
            Inception(self.inception, device=self.device) if self.inception else RandomFrames(),
            I3d(self.i3d, device=self.device) if self.i3d else RandomMotion(),
            *([VideoMae(self.videomae, self.device)] if self.videomae else []),
            Fidelity(self.video_frames),
        ]

    def _identity(self, finder: FaceFinder) -> Metric:
        from vidchat.bench.canonical.arcface import ArcFace
        from vidchat.bench.proxy.identity import FaceAppearance

        if (self.arcface is None) != (self.scrfd is None):
            raise BackendError("arcface and scrfd need each other: faces are aligned by landmarks")
        return ArcFace(self.arcface, self.scrfd) if self.arcface and self.scrfd else FaceAppearance(finder)

    def _coherence(self) -> list[Metric]:
        from vidchat.bench.canonical.coherence import NearestByClip, NearestBySentence, Transcriber
        from vidchat.bench.proxy.coherence import NearestSpoken

        if self.whisper is None:
            if self.clip or self.sentence:
                raise BackendError("clip and sentence compare texts, so they need whisper, which transcribes answers")
            return [NearestSpoken()]
        if not (self.clip or self.sentence):
            raise BackendError("whisper only transcribes; give clip, sentence or both")
        transcriber = Transcriber(self.whisper, self.device)
        metrics: list[Metric] = [NearestByClip(transcriber, self.clip, self.device)] if self.clip else []
        return metrics + ([NearestBySentence(transcriber, self.sentence, self.device)] if self.sentence else [])

    def _sync(self, finder: FaceFinder) -> Metric:
        from vidchat.bench.canonical.syncnet import SyncNet
        from vidchat.bench.proxy.sync import MouthAndLoudness

        return SyncNet(self.syncnet, finder, self.device) if self.syncnet else MouthAndLoudness(finder)

    def _emotion(self, finder: FaceFinder) -> Metric:
        from vidchat.bench.canonical.expression import ExpressionCoefficients
        from vidchat.bench.proxy.expression import EdgeDirections

        return ExpressionCoefficients(self.expression) if self.expression else EdgeDirections(finder)

    def _voice(self) -> list[Metric]:
        from vidchat.bench.canonical.dnsmos import Dnsmos
        from vidchat.bench.canonical.utmos import Utmos
        from vidchat.bench.canonical.voice import WavLmEcapa, XVector
        from vidchat.bench.proxy.voice import PitchAndTimbre

        metrics: list[Metric] = [WavLmEcapa(self.sim, self.device)] if self.sim else []
        metrics += [XVector(self.xvector, self.device)] if self.xvector else []
        quality: list[Metric] = [Dnsmos(self.dnsmos)] if self.dnsmos else []
        quality += [Utmos(self.utmos, self.device)] if self.utmos else []
        return (metrics or [PitchAndTimbre()]) + quality
