"""What gives the SVG model's latent an effect: its start, and its way past the narrow vector g."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cvaecli.config import loading as configs
from cvaecli.errors import UserError
from cvaecli.models.base import VideoCVAE
from cvaecli.models.svg.backbones import Layer
from cvaecli.models.svg.init import START_LOGVAR
from cvaecli.models.svg.model import SVG, SVGConfig

D, P, K = 7, 2, 3
SMALL: dict[str, Any] = {
    "width": 4,
    "g_dim": 8,
    "z_dim": 4,
    "rnn_size": 16,
    "backbone": "dcgan",
    "norm": "group",
}


def build(**settings: Any) -> SVG:
    torch.manual_seed(0)
    return SVG(SVGConfig(**(SMALL | settings)), (D,)).eval()


@torch.no_grad()
def predicted(model: SVG, noise: Tensor) -> Tensor:
    """``[1, K, 3, 32, 32]``: all steps forced, z from the prior at this noise ``[1, K, z_dim]``."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.rand(1, P + K, 3, 32, 32, generator=generator)
    condition = torch.randn(1, P + K, D, generator=generator)
    state = model.start(frames[:, :P], condition[:, :P])
    features = model.encode(condition[:, P:])
    return model.unroll(state, frames[:, P - 1 : -1], features, [noise], posterior=False)[0].x_hat


def modulation(model: SVG) -> list[torch.nn.Linear]:
    return [
        m for name, m in model.named_modules() if name.endswith("modulate") and isinstance(m, torch.nn.Linear)
    ]


@torch.no_grad()
def signal(model: SVG) -> float:
    """How much the posterior's mean differs from frame to frame, in units of its noise."""
    frames = torch.rand(64, 3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    h = model.encode(torch.zeros(64, 3, D), frames)["h"]
    q, _ = model.posterior(h, model.posterior.initial(h))
    return float((q.mu.flatten(0, 1).std(0) / (0.5 * q.logvar).exp().flatten(0, 1).mean(0)).mean())


def test_a_scaled_start_makes_posterior_means_differ() -> None:
    original, scaled = build(), build(init="scaled")
    assert signal(original) < 0.01 and signal(scaled) > 1
    assert (scaled.posterior.logvar_net.bias == START_LOGVAR).all() and (
        original.posterior.logvar_net.bias == 0
    ).all()
    for model in (original, scaled):
        assert model.decoder.state_dict().keys() == original.decoder.state_dict().keys()
    same = zip(original.encoder.parameters(), scaled.encoder.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same), "the convolutions start alike"
    assert build(init="scaled", prior="fixed").prior is None


def test_z_scales_and_shifts_channels_only_where_asked() -> None:
    plain, direct = build(conditional_conv=True), build(conditional_conv=True, conditional_z=True)
    assert {m.in_features for m in modulation(plain)} == {D}
    assert {m.in_features for m in modulation(direct)} == {D + SMALL["z_dim"]}
    noise = torch.zeros(1, K, SMALL["z_dim"])
    other = noise.clone()
    other[:, 1] = 1
    for model in (plain, direct):
        with torch.no_grad():
            model.frame_predictor.output[0].weight.zero_()  # nothing reaches g
            for m in modulation(model):
                m.weight.normal_(0, 0.3)
    assert torch.equal(predicted(plain, noise), predicted(plain, other))
    before, after = predicted(direct, noise), predicted(direct, other)
    assert torch.equal(before[:, 0], after[:, 0]) and torch.equal(before[:, 2], after[:, 2])
    assert (before[:, 1] - after[:, 1]).abs().max() > 1e-3, "its own frame, and only that"


@torch.no_grad()
def test_a_slope_depends_on_the_place() -> None:
    """On features that are the same everywhere a plain shift stays so, and a sloping one does not."""
    layer = Layer(torch.nn.Conv2d(1, 2, 1), 2, "group", condition_dim=1)
    for p in layer.parameters():
        p.zero_()
    x, condition = torch.zeros(1, 1, 4, 8), torch.ones(1, 1)
    assert (layer(x, condition=condition) == 0).all()
    layer.add_slope()
    assert layer.slope is not None
    torch.nn.init.zeros_(layer.slope.bias)
    layer.slope.weight.copy_(
        torch.tensor([[1.0], [0], [0], [2]])
    )  # channel 0 to the right, channel 1 downward
    right, down = layer(x, condition=condition)[0]
    torch.testing.assert_close(right[:, 4:], torch.tensor([1, 3, 5, 7]).expand(4, 4) / 8)
    torch.testing.assert_close(down[2:], 2 * torch.tensor([[1], [3]]).expand(2, 8) / 4)
    assert torch.equal(layer(x, condition=-condition)[0, 0].flip(1), right)


def test_slopes_are_only_where_asked() -> None:
    def slopes(model: SVG) -> int:
        return sum("slope.weight" in name for name in model.state_dict())

    assert (
        slopes(build(conditional_conv=True))
        == 0
        < slopes(build(conditional_conv=True, conditional_slope=True))
    )


@pytest.mark.parametrize("key", ["conditional_z", "conditional_slope"])
def test_needs_the_conditional_convolution(key: str) -> None:
    with pytest.raises(UserError, match=f"{key}: needs conditional_conv"):
        configs.load("robot", ["model.conditional_conv=false", f"model.{key}=true"])


def test_unroll_equals_the_loop_and_gradients_reach_everything() -> None:
    model = build(conditional_conv=True, conditional_z=True, conditional_slope=True, init="scaled").train()
    generator = torch.Generator().manual_seed(3)
    frames = torch.rand(2, P + K, 3, 32, 32, generator=generator)
    condition = torch.randn(2, P + K, D, generator=generator)
    noise = [torch.randn(2, K, SMALL["z_dim"], generator=generator)]
    results = []
    for unroll in (SVG.unroll, VideoCVAE.unroll):
        state = model.start(frames[:, :P], condition[:, :P])
        features = model.encode(condition[:, P:], frames[:, P:])
        results.append(unroll(model, state, frames[:, P - 1 : -1], features, noise, True)[0])
    torch.testing.assert_close(results[0].x_hat, results[1].x_hat, rtol=1e-5, atol=1e-5)
    (results[0].x_hat.square().mean() + results[0].p[0].mu.sum() + results[0].p[0].logvar.sum()).backward()
    assert all(p.grad is not None for p in model.parameters())
