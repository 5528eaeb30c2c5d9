"""The reference and the anchored model with vectors as conditions, and pixels that move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from unets import SMALL, H, K, W, build, run

from cvaecli.models.anchored import AnchoredConfig, AnchoredCVAE, move
from cvaecli.models.reference import ReferenceCVAE
from cvaecli.models.vector_maps import WAVES, VectorMaps, add_map

D = 5
KINDS = pytest.mark.parametrize("kind", ["reference", "anchored", "motion"])


def make(kind: str) -> ReferenceCVAE:
    if kind == "reference":
        return build(condition=(D,))
    return build(AnchoredCVAE, (D,), motion=kind == "motion")


def inputs(height: int = H, width: int = W) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "past": torch.rand(2, 2, 3, height, width),
        "past_condition": torch.randn(2, 2, D),
        "condition": torch.randn(2, K, D),
        "targets": torch.rand(2, K, 3, height, width),
        "x_prev": torch.rand(2, K, 3, height, width),
    }


@KINDS
@pytest.mark.parametrize("posterior", [False, True])
def test_all_steps_at_once_equal_one_after_the_other(kind: str, posterior: bool) -> None:
    model, data = make(kind), inputs()
    together, apart = run(model, data, posterior), run(model, data, posterior, loop=True)
    torch.testing.assert_close(together.x_hat, apart.x_hat, rtol=1e-5, atol=1e-6)
    for one, other in zip(together.q + together.p, apart.q + apart.p, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@KINDS
def test_a_step_sees_its_own_vector_alone(kind: str) -> None:
    model, data = make(kind), inputs()
    edited = data["condition"].clone()
    edited[:, -1] += 1
    before, after = run(model, data).x_hat, run(model, {**data, "condition": edited}).x_hat
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.equal(before[:, 2], after[:, 2])


@KINDS
@pytest.mark.parametrize("size", [(12, 20), (13, 22), (8, 8)])
def test_any_frame_size(kind: str, size: tuple[int, int]) -> None:
    step = run(make(kind), inputs(*size), posterior=True)
    assert step.x_hat.shape == (2, K, 3, *size)
    assert float(step.x_hat.detach().min()) > 0 and float(step.x_hat.detach().max()) < 1


def test_vectors_are_normalised_by_what_is_saved_with_the_weights() -> None:
    model, data = make("anchored"), inputs()
    plain = run(model, data).x_hat
    mean, std = torch.randn(D), 1 + torch.rand(D)
    model.set_condition_stats(mean, std)
    scaled = {**data, "condition": data["condition"] * std + mean}
    torch.testing.assert_close(run(model, scaled).x_hat, plain, rtol=1e-4, atol=1e-5)
    other = make("anchored")
    other.load_state_dict(model.state_dict())
    assert torch.equal(run(other, scaled).x_hat, run(model, scaled).x_hat)


def test_each_map_is_a_sum_of_cosines_that_the_vector_weighs() -> None:
    torch.manual_seed(0)
    maps, vectors, h = VectorMaps(D, [16, 32]), torch.randn(2, D), torch.randn(2, 32, 6, 9)
    found = add_map(h, maps.split(maps(vectors)).down[1]) - h
    own = maps(vectors)[:, 16 * WAVES**2 : 48 * WAVES**2].view(2, WAVES, WAVES, 32)
    x, y = (torch.arange(9) + 0.5) / 9, (torch.arange(6) + 0.5) / 6
    expected = torch.zeros(2, 32, 6, 9)
    for i in range(WAVES):
        for j in range(WAVES):
            wave = torch.cos(torch.pi * i * y)[:, None] * torch.cos(torch.pi * j * x)
            expected += own[:, i, j, :, None, None] * wave
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_whole_displacements_move_pixels_and_halves_mix_neighbours() -> None:
    frame = torch.rand(1, 3, 7, 9)

    def moved(right: float, down: float) -> torch.Tensor:
        return move(frame, torch.tensor([right, down])[None, :, None, None].expand(1, 2, 7, 9))

    close: dict[str, Any] = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(moved(0, 0), frame, **close)
    torch.testing.assert_close(moved(2, -1)[..., 1:, :-2], frame[..., :-1, 2:], **close)
    torch.testing.assert_close(moved(0.5, 0)[..., :-1], (frame[..., :-1] + frame[..., 1:]) / 2, **close)
    torch.testing.assert_close(moved(0, 99), frame[..., -1:, :].expand_as(frame), **close)


def test_the_deterministic_move_is_the_same() -> None:
    torch.manual_seed(0)
    frame, displacement = torch.rand(2, 3, 7, 9, requires_grad=True), torch.randn(2, 2, 7, 9) * 4
    displacement.requires_grad_()
    plain = move(frame, displacement)
    torch.use_deterministic_algorithms(True)
    try:
        other = move(frame, displacement)
        backward = torch.autograd.grad(other.square().sum(), (frame, displacement))
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(other, plain, rtol=0, atol=1e-5)
    expected = torch.autograd.grad(plain.square().sum(), (frame, displacement))
    torch.testing.assert_close(backward, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("source", [0, 1, 2])
def test_each_pixel_is_a_mean_of_what_is_drawn_what_moved_and_the_anchor(source: int) -> None:
    model, data = make("motion"), inputs()
    with torch.no_grad():
        model.out.weight.zero_()
        model.out.bias.zero_()
        model.out.bias[3] = 1.0  # from one pixel to the right
        model.out.bias[5 + source] = 20.0
    found = run(model, data).x_hat[..., :-1]
    grey, anchor = torch.full_like(found, 0.5), data["past"][:, 1:, ..., :-1].expand_as(found)
    expected = (grey, data["x_prev"][..., 1:], anchor)[source]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_moving_square_is_learned_from_the_action() -> None:
    """The texture is new in every row, so it can only be moved, not drawn; where to, only the action says."""
    torch.manual_seed(0)
    model = AnchoredCVAE(AnchoredConfig(**SMALL, motion=True), (1,)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    errors = []
    for _ in range(60):
        frame, action = torch.rand(8, 1, 3, 8, 16), torch.randint(0, 2, (8, 1, 1)).float()
        target = torch.where(action[..., None, None] > 0, frame.roll(1, -1), frame.roll(-1, -1))
        features = model.encode(action, target)
        noise = [torch.randn(8, 1, *s) for s in model.noise_shapes((8, 16))]
        step, _ = model.unroll(model.start(frame, action), frame, features, noise, posterior=True)
        error = (step.x_hat - target)[..., 1:-1].square().mean()  # what comes in at the border is not known
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.25 * errors[0], errors[::10]
