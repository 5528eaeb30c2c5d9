"""Muon against the plain iteration, against PyTorch's Muon for matrices, and with AdamW beside it."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from cvaecli.engine.muon import COEFFICIENTS, ITERATIONS, Muon, is_matrix, orthogonalised

SETTINGS = {"betas": (0.9, 0.99), "weight_decay": 0.5, "fused": True}


def plainly(matrices: torch.Tensor) -> torch.Tensor:
    """The iteration as it is published, in float64."""
    a, b, c = COEFFICIENTS
    X = matrices.double()
    X = X / torch.linalg.matrix_norm(X)
    for _ in range(ITERATIONS):
        square = X @ X.mT
        X = a * X + b * square @ X + c * square @ square @ X
    return X


def with_singular_values(values: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    left = torch.linalg.qr(torch.randn(rows, len(values), dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, len(values), dtype=torch.float64)).Q
    return (left * values @ right.mT).float()


@pytest.mark.parametrize(("rows", "columns"), [(40, 90), (90, 40), (64, 64)])
@pytest.mark.parametrize("decades", [0, 2, 5])
def test_it_is_the_published_iteration(rows: int, columns: int, decades: int) -> None:
    """Also where the smallest singular values are lost in the rounding of the largest."""
    torch.manual_seed(0)
    given = with_singular_values(torch.logspace(0, -decades, 40, dtype=torch.float64), rows, columns)
    made = orthogonalised([given])[0]
    torch.testing.assert_close(made.double(), plainly(given), rtol=0, atol=1e-3)
    if decades <= 2 and min(rows, columns) == 40:
        values = torch.linalg.svdvals(made)
        assert values.min() > 0.6 and values.max() < 1.25


def test_matrices_do_not_mix_and_zeros_stay_zeros() -> None:
    """Their longer sides differ."""
    torch.manual_seed(0)
    given = [torch.randn(32, 50), torch.zeros(32, 50), torch.randn(70, 32), torch.randn(32, 32)]
    made = orthogonalised(given)
    assert torch.equal(made[1], torch.zeros(32, 50))
    for one, alone in zip(made, given, strict=True):
        assert one.shape == alone.shape
        torch.testing.assert_close(one, orthogonalised([alone])[0])


def test_steps_of_matrices_are_those_of_pytorchs_muon() -> None:
    """PyTorch iterates in bfloat16, so its steps are rounded."""
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(48, 80) / 50), nn.Parameter(torch.empty(48, 80))
    theirs.data.copy_(ours)
    start = ours.detach().clone()
    muon = Muon([ours], [], 0.02, momentum=0.9, **SETTINGS)
    reference = torch.optim.Muon(
        [theirs], 0.02, weight_decay=0.5, momentum=0.9, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(4):
        ours.grad = torch.randn(48, 80)
        theirs.grad = ours.grad.clone()
        muon.step()
        reference.step()
    moved, expected = ours.detach() - start, theirs.detach() - start
    assert (moved - expected).norm() < 0.02 * expected.norm()


class Net(nn.Module):
    """Weights of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.alike = nn.Conv2d(32, 40, 3), nn.Conv2d(32, 40, 3)
        self.wide, self.out = nn.Linear(64, 32), nn.Conv2d(40, 3, 3)
        self.norm, self.depthwise = nn.BatchNorm2d(40), nn.Conv2d(40, 40, 3, groups=40)


def made(net: nn.Module) -> Muon:
    parameters = list(net.parameters())
    matrices, others = filter(is_matrix, parameters), itertools.filterfalse(is_matrix, parameters)
    return Muon(matrices, others, 0.01, momentum=0.95, **SETTINGS)


def give_gradients(net: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.grad = torch.randn(p.shape, generator=generator).to(memory_format=_format(p))


def _format(p: torch.Tensor) -> torch.memory_format:
    channels_last = p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def test_all_other_parameters_are_adamws() -> None:
    torch.manual_seed(0)
    net = Net()
    plain = copy.deepcopy(net)
    matrices = {name for name, p in net.named_parameters() if is_matrix(p)}
    assert matrices == {"hidden.weight", "alike.weight", "wide.weight"}
    muon = made(net)
    adamw = torch.optim.AdamW(plain.parameters(), 0.01, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    for seed in range(3):
        give_gradients(net, seed)
        give_gradients(plain, seed)
        muon.step()
        adamw.step()
    for (name, p), q in zip(net.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q) == (name not in matrices), name


def test_the_order_of_a_weight_in_memory_does_not_matter() -> None:
    torch.manual_seed(0)
    one = Net()
    other = copy.deepcopy(one).to(memory_format=torch.channels_last)
    for net in (one, other):
        muon = made(net)
        for seed in range(3):
            give_gradients(net, seed)
            if net is other and seed == 2:  # a gradient in another order than its weight
                net.hidden.weight.grad = net.hidden.weight.grad.contiguous()  # type: ignore[union-attr]
            muon.step()
    assert other.hidden.weight.is_contiguous(memory_format=torch.channels_last)
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_a_loaded_state_goes_on_bit_for_bit() -> None:
    torch.manual_seed(0)
    whole = Net()
    muon = made(whole)
    give_gradients(whole, 0)
    muon.step()
    resumed = copy.deepcopy(whole)
    again = made(resumed)
    again.load_state_dict(copy.deepcopy(muon.state_dict()))
    for net, optimizer in ((whole, muon), (resumed, again)):
        give_gradients(net, 1)
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))
