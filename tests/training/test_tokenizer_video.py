from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from vidchat.tokenizers.stacked import StackedVAE
from vidchat.training.schedule import OptimizerSettings
from vidchat.training.tokenizer_video import FrameSamples, VideoTokenizerModule, edge_distance, psnr, to_frames


class Squares(IterableDataset[dict[str, Tensor]]):
    """Bright squares that move over coloured grounds; batch k is a function of k."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for k in range(10_000):
            yield {"frames": squares(k)}


class SquaresModule(L.LightningDataModule):
    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(Squares(), batch_size=None)


def squares(k: int, clips: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(k)
    frames = torch.randint(0, 200, (clips, 1, 3, 1, 1), generator=generator).expand(-1, 5, -1, 16, 16).clone()
    for clip in frames:
        row, column = torch.randint(0, 8, (2,), generator=generator).tolist()
        for n, frame in enumerate(clip):
            frame[:, row : row + 4, column + n : column + n + 4] = 255
    return frames.to(torch.uint8)


def module(steps: int = 60, **settings: object) -> VideoTokenizerModule:
    torch.manual_seed(0)
    vae = StackedVAE(8, patch=2, widths=(16, 24), encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    optimizer = OptimizerSettings(lr=2e-3, steps=steps, warmup=5, ema_decay=0.9)
    defaults = {"start_batches": 8, "statistics_batches": 8, "half_precision": False}
    return VideoTokenizerModule(vae, optimizer, **(defaults | settings))  # type: ignore[arg-type]


def fit(trained: VideoTokenizerModule, steps: int, directory: Path, callbacks: list[L.Callback] | None = None) -> None:
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=directory,
        callbacks=callbacks,
    )
    trainer.fit(trained, datamodule=SquaresModule())


def quality(vae: StackedVAE) -> float:
    frames = to_frames(squares(99_999, clips=16))
    with torch.inference_mode():
        return float(psnr(vae.decode(vae.encode(frames)), frames))


def test_training_improves_on_the_principal_components(tmp_path: Path) -> None:
    start = module(steps=1)
    start.network.start_from(to_frames(squares(k)) for k in range(8))  # type: ignore[operator]
    trained = module(steps=150, window=8, noise=0.05, edge_weight=0.0, motion_weight=0.0, start_motion=1.0)
    fit(trained, 150, tmp_path)
    trained.export(tmp_path / "export", {})
    assert quality(StackedVAE.load(tmp_path / "export")) > quality(start.network) + 0.2  # type: ignore[arg-type]


def test_the_exported_latents_have_mean_0_and_deviation_1(tmp_path: Path) -> None:
    trained = module(steps=10)
    fit(trained, 10, tmp_path)
    trained.export(tmp_path / "export", {})
    latents = StackedVAE.load(tmp_path / "export").encode(torch.cat([to_frames(squares(k)) for k in range(8)]))
    torch.testing.assert_close(latents.mean((0, 2, 3, 4)), torch.zeros(8), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3, 4)), torch.ones(8), atol=1e-2, rtol=0)


def test_half_precision_is_what_the_file_holds(tmp_path: Path) -> None:
    trained = module(steps=1, half_precision=True)
    trained.export(tmp_path, {})
    first = StackedVAE.load(tmp_path)
    first.save(tmp_path / "again", torch.float16)
    assert StackedVAE.load(tmp_path / "again").fingerprint() == first.fingerprint()


def test_validation_leaves_the_statistics_alone() -> None:
    trained = module().eval()
    before = trained.network.latents_mean.clone(), trained.network.latents_std.clone()
    trained.losses({"frames": squares(0)})
    assert torch.equal(trained.network.latents_mean, before[0])
    assert torch.equal(trained.network.latents_std, before[1])


def test_samples_are_frames_above_their_round_trip(tmp_path: Path) -> None:
    fit(module(steps=4), 4, tmp_path, [FrameSamples(every=2, columns=3)])
    sheets = sorted((tmp_path / "frames").iterdir())
    assert [sheet.name for sheet in sheets] == ["0000002.png", "0000004.png"]
    with Image.open(sheets[0]) as sheet:
        assert sheet.size == (3 * 16, 2 * 16)


def test_noise_on_the_latents_costs_quality() -> None:
    """It is added after normalisation, so it cannot be made small by a larger scale of the latents."""

    def measured(noise: float) -> float:
        torch.manual_seed(3)
        trained = module(noise=noise).eval()
        trained.network.start_from([to_frames(squares(k)) for k in range(8)])  # type: ignore[operator]
        return float(trained.losses({"frames": squares(1)})["psnr"].detach())

    assert measured(0.0) > measured(1.0) + 1


def test_what_moves_counts_more() -> None:
    """The same error costs more where frames change."""
    frames = to_frames(squares(0))
    importance = module(moving_weight=10.0)._importance(frames)
    still = frames.amax((1, 2)) == frames.amin((1, 2)).clamp_min(-2)
    moving = (frames - frames.mean(2, keepdim=True)).abs().amax((1, 2)) > 0.1
    assert importance.min() == 1
    assert importance[:, 0].amax(1)[moving].min() > 1.05
    assert not (still & moving).any()


def test_edge_distance_sees_edges_not_brightness() -> None:
    error = torch.full((1, 3, 2, 16, 16), 0.5)
    assert edge_distance(error) == 0
    error[..., 8:] = 0.0
    assert edge_distance(error) > 0.02


@pytest.mark.parametrize(("error", "decibels"), [(2.0, 0.0), (0.2, 20.0), (0.02, 40.0)])
def test_psnr_is_for_frames_from_minus_1_to_1(error: float, decibels: float) -> None:
    frame = torch.zeros(1, 3, 1, 4, 4)
    assert psnr(frame + error, frame) == pytest.approx(decibels, abs=1e-3)


def test_bytes_become_frames_from_minus_1_to_1() -> None:
    pixels = torch.zeros(2, 5, 3, 4, 6, dtype=torch.uint8)
    pixels[:, 3] = 255
    frames = to_frames(pixels)
    assert frames.shape == (2, 3, 5, 4, 6)
    assert frames[:, :, 3].eq(1).all()
    assert frames[:, :, :3].eq(-1).all()


def test_the_noise_is_as_strong_whatever_the_latents_scale() -> None:
    """U(0, noise) of a normalised latent's deviation, one level per clip, drawn anew."""
    trained = module(noise=0.5).eval()
    trained.network.latents_std.fill_(10.0)
    raw, noisy = [], []
    encode, denormalise = trained.network.encode_raw, trained.network.denormalise
    trained.network.encode_raw = lambda frames: raw.append(encode(frames)) or raw[-1]  # type: ignore[method-assign]
    trained.network.denormalise = lambda latents: noisy.append(latents) or denormalise(latents)  # type: ignore[method-assign]
    with torch.no_grad():
        for _ in range(20):
            trained.losses({"frames": squares(0)})
    levels = torch.cat([(a - trained.network.normalise(b)).flatten(1).std(1) for a, b in zip(noisy, raw, strict=True)])
    assert levels.max() < 0.6
    assert levels.mean() == pytest.approx(0.25, abs=0.04)
    assert levels.std() == pytest.approx(0.5 / 12**0.5, abs=0.04)


def test_statistics_in_training_follow_mean_and_deviation() -> None:
    trained = module(momentum=0.1)
    raw = 3 + 2 * torch.randn(4, 8, 2, 8, 8)
    for _ in range(200):
        trained._follow(raw)
    torch.testing.assert_close(trained.network.latents_mean, raw.mean((0, 2, 3, 4)), atol=1e-3, rtol=1e-3)
    expected = raw.transpose(0, 1).flatten(1).std(1, unbiased=False)
    torch.testing.assert_close(trained.network.latents_std, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_latents_that_are_not_finite_move_no_statistics(value: float) -> None:
    trained = module(momentum=0.1)
    before = trained.network.latents_mean.clone(), trained.network.latents_std.clone()
    raw = torch.randn(4, 8, 2, 8, 8)
    raw[1, 2, 0, 3, 3] = value
    trained._follow(raw)
    assert torch.equal(trained.network.latents_mean, before[0])
    assert torch.equal(trained.network.latents_std, before[1])


def test_windows_lie_on_the_latent_grid_and_anywhere_on_it() -> None:
    trained = module()
    stride = trained.network.spatial_stride
    assert stride > 1
    positions = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij"))[None, :, None]
    cuts = [trained._cut(positions, 8) for _ in range(200)]
    complete = [cut for cut in cuts if cut.shape[-1] == 16]
    firsts = {tuple(cut[0, :, 0, 0, 0].int().tolist()) for cut in cuts if cut.shape[-1] == 8}
    assert firsts == {(row, col) for row in range(0, 9, stride) for col in range(0, 9, stride)}
    assert len(complete) / 200 == pytest.approx(0.25, abs=0.1)


def test_the_loss_is_of_pixels_edges_and_motion() -> None:
    """A decoder that errs in a known way: brighter by 0.1 with every frame, on the right half alone."""
    trained = module(noise=0.0, edge_weight=3.0, motion_weight=5.0, moving_weight=0.0).eval()
    frames = to_frames(squares(0)) * 0.1
    error = 0.1 * torch.arange(5.0).view(1, 1, 5, 1, 1).expand(4, 3, 5, 16, 16).clone()
    error[..., :8] = 0
    trained.network.decode_raw = lambda latents: frames + error  # type: ignore[method-assign]
    pixels = ((frames + 1) * 127.5).transpose(1, 2)
    losses = trained.losses({"frames": pixels})
    assert float(losses["pixels"]) == pytest.approx(0.1, rel=1e-3)
    assert float(losses["motion"]) == pytest.approx(0.5 * 0.1**2, rel=1e-3)
    assert float(losses["edges"]) == pytest.approx(float(edge_distance(error)), rel=1e-3)
    expected = losses["pixels"] + 3 * losses["edges"] + 5 * losses["motion"]
    torch.testing.assert_close(losses["loss"], expected)


def test_principal_components_are_the_same_in_whatever_order_clips_are_summed() -> None:
    """As two ranks sum them otherwise than one process: also the last ones, which vary a millionth of the first."""
    torch.manual_seed(0)
    scale = torch.logspace(0, -3, 96)[torch.randperm(96)].view(1, 3, 1, 1, 32)
    clips = [0.5 + 0.1 * scale * torch.randn(1, 3, 5, 32, 32) for _ in range(8)]
    starts = []
    for order in (clips, clips[::-1]):
        torch.manual_seed(1)
        tokenizer = StackedVAE(96, 8, [8], [1], [1])
        tokenizer.start_from(order)
        starts.append(tokenizer.to_latents.weight)
    torch.testing.assert_close(starts[0].abs(), starts[1].abs(), rtol=1e-5, atol=1e-5)
