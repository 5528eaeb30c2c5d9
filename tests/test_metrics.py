"""PSNR and SSIM against scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from cvaecli import metrics


def test_a_prediction_as_bytes() -> None:
    x = torch.tensor([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 0.5, 1.0, 2.0, torch.nan, torch.inf])
    assert metrics.as_bytes(x).tolist() == [0, 0, 0, 1, 128, 255, 255, 0, 255]
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(metrics.as_bytes(values / 255), values)


def pair(height: int = 20, width: int = 26, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """(prediction, truth) ``[2, 3, 3, H, W]``: smooth pictures, and the same with noise, within [0, 1]."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(6, 3, 4, 4, generator=generator)
    x = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").reshape(
        2, 3, 3, height, width
    )
    scale = noise * torch.tensor([0.2, 1.0, 2.0])[None, :, None, None, None]
    return (x + scale * torch.randn(x.shape, generator=generator)).clamp(0, 1), x


def picture(frame: Tensor) -> np.ndarray:
    return np.moveaxis(frame.double().numpy(), 0, -1)


def test_psnr_agrees_with_scikit_image() -> None:
    x_hat, x = pair()
    for b, t in np.ndindex(2, 3):
        expected = peak_signal_noise_ratio(picture(x[b, t]), picture(x_hat[b, t]), data_range=1)
        assert metrics.psnr(x_hat, x)[b, t].item() == pytest.approx(expected, abs=1e-3)
        channels = [
            peak_signal_noise_ratio(
                x[b, t, c].double().numpy(), x_hat[b, t, c].double().numpy(), data_range=1
            )
            for c in range(3)
        ]
        assert metrics.psnr_per_channel(x_hat, x)[b, t].item() == pytest.approx(np.mean(channels), abs=1e-3)


def test_ssim_agrees_with_scikit_image() -> None:
    x_hat, x = pair()
    values = metrics.ssim(x_hat, x)
    assert values.shape == (2, 3)
    for b, t in np.ndindex(2, 3):
        # Its mean leaves out a border of (window - 1) / 2 pixels, as the definition does.
        expected = structural_similarity(
            picture(x[b, t]),
            picture(x_hat[b, t]),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
            channel_axis=-1,
        )
        assert values[b, t].item() == pytest.approx(expected, abs=2e-5)


def test_an_exact_frame_counts_100_db_and_ssim_1() -> None:
    _, x = pair()
    assert (metrics.psnr(x, x) == 100).all() and (metrics.psnr_per_channel(x, x) == 100).all()
    torch.testing.assert_close(metrics.ssim(x, x), torch.ones(2, 3))


def test_psnr_per_channel_is_never_below_psnr() -> None:
    x_hat, x = pair()
    x_hat[:, :, 0] = x[:, :, 0] * 0.99  # one channel is better than the others
    assert (metrics.psnr_per_channel(x_hat, x) >= metrics.psnr(x_hat, x) - 1e-4).all()
    assert (metrics.psnr_per_channel(x_hat, x) > metrics.psnr(x_hat, x) + 1).any()


def test_a_known_error() -> None:
    x = torch.full((1, 1, 3, 4, 4), 0.5)
    assert metrics.psnr(x + 0.1, x).item() == pytest.approx(20.0, abs=1e-4)
    assert metrics.psnr_from_mse(torch.tensor(0.001)).item() == pytest.approx(30.0, abs=1e-4)


def test_predictions_are_clamped() -> None:
    x = torch.ones(1, 1, 3, 12, 12)
    assert metrics.psnr(x + 5, x).item() == 100 and metrics.psnr(-x, x).item() == 0
    assert metrics.ssim(x + 5, x).item() == pytest.approx(1)


def test_nan_is_scored_as_the_black_that_is_shown() -> None:
    _, x = pair()
    broken = x.clone()
    broken[0, 1] = torch.nan
    black = x.clone()
    black[0, 1] = 0
    for measure in (metrics.mse, metrics.psnr, metrics.psnr_per_channel, metrics.ssim):
        assert torch.equal(measure(broken, x), measure(black, x))
    assert metrics.psnr(torch.full_like(x, torch.inf), x).isfinite().all()


def test_ssim_of_frames_smaller_than_its_window_is_nan() -> None:
    x = torch.rand(2, 3, 3, 10, 30)
    assert metrics.ssim(x, x).isnan().all() and metrics.ssim(x, x).shape == (2, 3)
    x = torch.rand(1, 1, 3, 11, 11)
    assert metrics.ssim(x, x).item() == pytest.approx(1)


def test_pixels_near_ink_on_any_background() -> None:
    for background, ink in ((1.0, 0.7), (0.0, 0.3)):
        label = torch.full((2, 1, 3, 16, 32), background)
        label[0, 0, 1, 4, 20] = ink
        near = metrics.near_ink(label, 2)
        expected = torch.zeros(2, 1, 1, 16, 32, dtype=torch.bool)
        expected[0, 0, 0, 2:7, 18:23] = True
        assert torch.equal(near, expected)


def test_the_error_near_ink_and_the_error_elsewhere_add_up() -> None:
    x, x_hat = torch.rand(2, 3, 3, 8, 8), torch.rand(2, 3, 3, 8, 8)
    where = torch.rand(2, 3, 1, 8, 8) > 0.5
    parts = metrics.mse_within(x_hat, x, where) + metrics.mse_within(x_hat, x, ~where)
    torch.testing.assert_close(parts, metrics.mse(x_hat, x))
