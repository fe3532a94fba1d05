from __future__ import annotations

import wave
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from vidchat.tokenizers.stft_codec import StftCodec
from vidchat.training.schedule import OptimizerSettings
from vidchat.training.spectral import SpectralDistance, low_pass, mel_bank
from vidchat.training.tokenizer_audio import AudioCodecModule, AudioSamples, write_wav

RATE, HOP = 4000, 80


def tones(batch: int, samples: int, seed: int = 0) -> torch.Tensor:
    """Chords that change every quarter of a second."""
    generator = torch.Generator().manual_seed(seed)
    segments = -(-samples // (RATE // 4))
    pitches = torch.randint(3, 30, (batch, 3, segments), generator=generator) * 50.0
    pitch = pitches.repeat_interleave(RATE // 4, 2)[..., :samples]
    return 0.2 * torch.sin(torch.cumsum(pitch, 2) * 2 * torch.pi / RATE).sum(1)


def module(steps: int, plain_steps: int, **changes: float) -> AudioCodecModule:
    torch.manual_seed(0)
    codec = StftCodec(
        sample_rate=RATE, hop=HOP, window=4 * HOP, codebooks=2, vocabulary=16, code_width=8, width=48,
        encoder_blocks=1, decoder_blocks=2, kernel=3,
    )  # fmt: skip
    settings = OptimizerSettings(lr=4e-3, steps=steps, warmup=5, betas=(0.8, 0.99), ema_decay=0.9)
    return AudioCodecModule(codec, settings, plain_steps=plain_steps, recent_vectors=512, **changes)


class OneBatch(Dataset):
    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"waveform": tones(4, RATE)}


class Losses(L.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: object, pl_module: object, outputs: dict, *_: object) -> None:
        self.seen.append(float(outputs["loss"]))


def fit(trained: AudioCodecModule, steps: int, folder: Path, ckpt: Path | None = None) -> tuple[L.Trainer, list[float]]:
    losses = Losses()

    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[losses, AudioSamples(every=10)], inference_mode=False,
    )  # fmt: skip
    loader = DataLoader(OneBatch(), batch_size=None)
    trainer.fit(trained, loader, ckpt_path=ckpt, weights_only=True)
    return trainer, losses.seen


def test_it_overfits_a_tiny_batch_through_all_phases(tmp_path: Path) -> None:
    trained = module(steps=140, plain_steps=70)
    _, losses = fit(trained, 140, tmp_path)
    waveform = tones(4, RATE)
    codec = trained.network.eval()
    with trained.ema.swapped():
        round_trip = codec.decode(codec.encode(waveform))
    distance = SpectralDistance(RATE)
    ours = float(sum(distance(round_trip, waveform)))
    assert losses[69] < 0.6 * losses[0]
    assert losses[-1] < losses[72]
    assert ours < 0.5 * float(sum(distance(torch.zeros_like(waveform), waveform)))
    assert codec.encode(waveform).unique().numel() > 8
    with wave.open(str(tmp_path / "sounds" / "0000010_codec.wav")) as file:
        assert (file.getframerate(), file.getnframes()) == (RATE, RATE)


def test_vectors_that_are_not_finite_are_not_remembered() -> None:
    trained = module(steps=8, plain_steps=5)
    vectors = torch.randn(2, 10, trained.recent.shape[1])
    vectors[1, 3, 0] = torch.nan
    trained._remember(vectors)
    assert bool(trained.recent.isfinite().all())
    assert torch.equal(trained.recent[:10], vectors[0])


def test_the_quantiser_sleeps_until_its_phase_and_then_fits_the_encoder(tmp_path: Path) -> None:
    trained = module(steps=8, plain_steps=5)
    before = trained.network.quantizer.levels[0].codebook.clone()
    fit(trained, 5, tmp_path)
    assert torch.equal(trained.network.quantizer.levels[0].codebook, before)
    assert int(trained.seen) == 5 * 4 * RATE // HOP
    fit(trained := module(steps=8, plain_steps=5), 6, tmp_path)
    vectors = trained.network.embed(tones(4, RATE)).flatten(0, 1)
    levels = trained.network.quantizer
    left = vectors - levels.decode(levels.encode(vectors))
    assert left.square().mean() < 0.5 * vectors.var(0).mean()


def test_training_further_uses_the_codebooks_as_they_are() -> None:
    trained = module(steps=8, plain_steps=0)
    assert "commitment" in trained.losses({"waveform": tones(2, RATE)})


@pytest.mark.parametrize("stop", [4, 6])  # while vectors are being remembered for k-means, and after it
def test_a_resumed_run_is_bit_for_bit_the_run_that_never_stopped(tmp_path: Path, stop: int) -> None:
    whole = module(steps=9, plain_steps=5)
    _, losses = fit(whole, 9, tmp_path)
    trainer, first = fit(module(steps=9, plain_steps=5), stop, tmp_path)
    trainer.save_checkpoint(tmp_path / "stop.ckpt")
    torch.manual_seed(1234)
    again = module(steps=9, plain_steps=5)
    _, rest = fit(again, 9, tmp_path, ckpt=tmp_path / "stop.ckpt")
    assert first + rest == losses
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    for name, value in whole.ema.average.items():
        assert torch.equal(value, again.ema.average[name]), name


def test_gradients_reach_the_encoder_through_the_codes() -> None:
    trained = module(steps=8, plain_steps=0, commitment_weight=0.0)
    trained.losses({"waveform": tones(2, RATE)})["loss"].backward()
    reached = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in trained.network.encoder.parameters()]
    assert all(reached)


def test_export_writes_the_averaged_codec(tmp_path: Path) -> None:
    trained = module(steps=8, plain_steps=2)
    fit(trained, 8, tmp_path)
    trained.export(tmp_path / "codec", {})
    exported = StftCodec.load(tmp_path / "codec")
    average = trained.ema.average["decoder.leave.weight"]
    assert torch.equal(exported.decoder.leave.weight, average.half().float())
    assert not torch.equal(trained.network.decoder.leave.weight.half().float(), average.half().float())


def test_spectral_distances_order_what_the_ear_orders() -> None:
    audio = tones(2, RATE)
    distance = SpectralDistance(RATE)
    quiet_noise = audio + 0.003 * torch.randn_like(audio)
    ladder = [audio, quiet_noise, low_pass(audio, RATE, 1000), low_pass(audio, RATE, 300), torch.zeros_like(audio)]
    for measured in zip(*(distance(step, audio) for step in ladder), strict=True):
        assert measured[0] == 0
        assert list(measured) == sorted(measured)


def test_spectral_distance_does_not_hear_the_sign_of_a_sound() -> None:
    audio = tones(1, RATE)
    stft, mel = SpectralDistance(RATE)(-audio, audio)
    assert stft < 1e-5
    assert mel < 1e-5


def test_silence_has_a_finite_gradient() -> None:
    silence = torch.zeros(1, RATE, requires_grad=True)
    sum(SpectralDistance(RATE)(silence, torch.zeros(1, RATE))).backward()
    assert torch.isfinite(silence.grad).all()


@pytest.mark.parametrize(("size", "bands"), [(256, 20), (256, 160), (2048, 160)])
def test_every_mel_band_hears_something(size: int, bands: int) -> None:
    bank = mel_bank(16000, size, bands)
    assert bank.shape == (bands, size // 2 + 1)
    assert (bank.sum(1) > 0).all()
    assert (bank >= 0).all()
    centres = bank.argmax(1)
    assert (centres.diff() >= 0).all()


def test_low_pass_keeps_what_is_low() -> None:
    time = torch.arange(RATE) / RATE
    low, high = torch.sin(2 * torch.pi * 100 * time), torch.sin(2 * torch.pi * 900 * time)
    assert torch.allclose(low_pass((low + high)[None], RATE, 500)[0], low, atol=1e-3)


def test_wav_files_are_clipped_not_wrapped(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", torch.tensor([0.0, 1.5, -1.5, 0.5]), RATE)
    with wave.open(str(tmp_path / "a.wav")) as file:
        samples = torch.frombuffer(bytearray(file.readframes(4)), dtype=torch.int16)
    assert samples.tolist() == [0, 32767, -32767, 16384]


def test_the_newest_vectors_are_remembered_and_none_of_validation() -> None:
    trained = module(steps=8, plain_steps=5)
    trained.eval().losses({"waveform": tones(2, RATE)})
    assert int(trained.seen) == 0
    vectors = torch.arange(700.0).view(1, 700, 1).expand(1, 700, 8)
    for first in range(0, 700, 100):
        trained._remember(vectors[:, first : first + 100])
    assert sorted(trained.recent[:, 0].tolist()) == list(range(188, 700)), "the last 512"


def test_only_training_starts_the_quantiser(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = module(steps=8, plain_steps=1)
    trained.losses({"waveform": tones(2, RATE)})
    monkeypatch.setattr(AudioCodecModule, "global_step", 1)
    trained.eval().losses({"waveform": tones(2, RATE)})
    assert not trained.quantizing
    trained.train().losses({"waveform": tones(2, RATE)})
    assert trained.quantizing


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    trained = module(steps=8, plain_steps=0, stft_weight=2.0, mel_weight=3.0, commitment_weight=5.0)
    losses = trained.losses({"waveform": tones(2, RATE)})
    expected = 2 * losses["stft"] + 3 * losses["mel"] + 5 * losses["commitment"]
    torch.testing.assert_close(losses["loss"], expected)


def test_a_batch_is_as_far_as_its_clips_and_silence_does_not_outweigh_them() -> None:
    """So a step's loss does not depend on how its clips are split, nor on whether one of them is silent."""
    distance = SpectralDistance(RATE)
    output = tones(3, RATE)
    target = torch.stack([0.5 * tones(1, RATE, seed=1)[0], torch.zeros(RATE), tones(1, RATE)[0]])
    whole, mel = distance(output, target)
    parts = [distance(output[i : i + 1], target[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(whole, torch.stack([stft for stft, _ in parts]).mean())
    torch.testing.assert_close(mel, torch.stack([mel for _, mel in parts]).mean())
    near_silence = 1e-3 * torch.randn(1, RATE, generator=torch.Generator().manual_seed(0))
    assert float(distance(near_silence, torch.zeros(1, RATE))[0]) < 10


def test_spectral_distances_are_their_definitions() -> None:
    """Spectral convergence + L1 of log magnitudes, and L1 of log mel spectra, at one window size, in numpy."""
    output, target = tones(1, RATE), 0.5 * tones(1, RATE, seed=1)
    stft, mel = SpectralDistance(RATE, sizes=(256,), bands=(20,))(output, target)
    window = np.hanning(257)[:-1]

    def spectrum(audio: torch.Tensor) -> np.ndarray:
        padded = np.pad(audio[0].numpy(), 128)
        frames = [padded[i : i + 256] * window for i in range(0, len(padded) - 255, 64)]
        return np.abs(np.fft.rfft(np.stack(frames), axis=1)).T

    a, b = spectrum(output), spectrum(target)
    convergence = np.linalg.norm(a - b) / np.linalg.norm(b)
    expected = convergence + np.abs(np.log(a + 1e-3) - np.log(b + 1e-3)).mean()
    assert float(stft) == pytest.approx(expected, rel=1e-3)
    bank = mel_bank(RATE, 256, 20).numpy()
    assert float(mel) == pytest.approx(np.abs(np.log(bank @ a + 1e-3) - np.log(bank @ b + 1e-3)).mean(), rel=1e-3)
