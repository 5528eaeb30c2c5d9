"""Reconstruction and KL against other people's formulas."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from cvaecli.models.base import Gaussian
from cvaecli.objective import kl_divergence as ours
from cvaecli.objective import reconstruction


def gaussian(seed: int, *shape: int) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    return Gaussian(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 6, 7), (1, 1, 1)])
def test_kl_equals_torch_distributions(shape: tuple[int, ...]) -> None:
    q, p = gaussian(0, *shape), gaussian(1, *shape)
    expected = kl_divergence(Normal(q.mu, (q.logvar / 2).exp()), Normal(p.mu, (p.logvar / 2).exp()))
    torch.testing.assert_close(ours(q, p), expected.flatten(2).sum(-1))
    assert ours(q, p).shape == shape[:2]


def test_a_learned_prior_at_0_1_equals_the_fixed_one() -> None:
    q = gaussian(0, 2, 3, 8)
    zeros = torch.zeros_like(q.mu)
    kingma = -0.5 * (1 + q.logvar - q.mu**2 - q.logvar.exp()).sum(-1)
    torch.testing.assert_close(ours(q, Gaussian(zeros, zeros)), kingma)
    shared = torch.zeros(()).expand(q.mu.shape)  # how a model without a learned prior gives it
    torch.testing.assert_close(ours(q, Gaussian(shared, shared)), kingma)


def test_kl_is_zero_for_equals_positive_otherwise_and_one_sided() -> None:
    q, p = gaussian(0, 2, 3, 8), gaussian(1, 2, 3, 8)
    torch.testing.assert_close(ours(q, q), torch.zeros(2, 3), atol=1e-5, rtol=0)
    assert (ours(q, p) > 0).all() and not torch.allclose(ours(q, p), ours(p, q))


def test_kl_of_half_precision_is_computed_in_float32() -> None:
    q = Gaussian(torch.full((1, 1, 1000), 0.01).bfloat16(), torch.zeros(1, 1, 1000).bfloat16())
    p = Gaussian(torch.zeros(1, 1, 1000).bfloat16(), torch.zeros(1, 1, 1000).bfloat16())
    value = ours(q, p)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(1000 * 0.5 * q.mu[0, 0, 0].item() ** 2, rel=1e-2)


def test_reconstruction_terms() -> None:
    x, x_hat = torch.zeros(2, 3, 1, 2, 2), torch.zeros(2, 3, 1, 2, 2)
    x_hat[0, 1] = torch.tensor([[0.1, -0.2], [0.3, 0.0]])
    mse = (0.01 + 0.04 + 0.09) / 4
    for kind, value, none in (
        ("mse", mse, 0.0),
        ("l1", 0.15, 0.0),
        ("optimal_sigma", 0.5 * torch.log(torch.tensor(mse + 1e-6)).item(), 0.5 * -13.815511),
    ):
        term = reconstruction(x_hat, x, kind)
        assert term.shape == (2, 3) and term.dtype == torch.float32
        assert term[0, 1].item() == pytest.approx(value, rel=1e-5)
        assert term[1, 2].item() == pytest.approx(none, rel=1e-5)


def test_the_reconstruction_is_not_clamped() -> None:
    """A prediction beyond [0, 1] must feel it; only the metrics clamp."""
    x_hat = torch.full((1, 1, 1, 2, 2), 3.0, requires_grad=True)
    reconstruction(x_hat, torch.ones(1, 1, 1, 2, 2)).sum().backward()
    assert x_hat.grad is not None and (x_hat.grad > 0).all()


def test_optimal_sigma_has_a_finite_gradient_on_an_exact_frame() -> None:
    x_hat = torch.zeros(1, 1, 1, 2, 2, requires_grad=True)
    reconstruction(x_hat, torch.zeros(1, 1, 1, 2, 2), "optimal_sigma").sum().backward()
    assert x_hat.grad is not None and x_hat.grad.isfinite().all()


def test_a_sample_has_the_gaussians_mean_and_spread() -> None:
    level = Gaussian(torch.full((20000,), 2.0), torch.full((20000,), 2 * torch.log(torch.tensor(3.0)).item()))
    noise = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    z = level.sample(noise)
    assert z.mean().item() == pytest.approx(2.0, abs=0.1) and z.std().item() == pytest.approx(3.0, abs=0.1)
    assert torch.equal(level.sample(torch.zeros(20000)), level.mu)
