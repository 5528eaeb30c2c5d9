"""Is this the SVG architecture? Weights by formula, numbers from the published code.

Names: each of our modules ``encoder``, ``decoder``, ``frame_predictor``, ``posterior`` and ``prior`` has
the original's state dict, entry for entry. Run as a script (``python tests/test_svg_parity.py``) this
records ``golden/svg.json`` anew.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_pose_parity import fill, sums
from torch import Tensor

from cvaecli.models.base import Gaussian
from cvaecli.models.svg.model import SVG, SVGConfig
from cvaecli.objective import kl_divergence

GOLDEN = Path(__file__).parent / "golden" / "svg.json"
MODULES = ("encoder", "decoder", "frame_predictor", "posterior", "prior")
B, K = 2, 3  # the numbers are of steps 1, 2, 3


def wave(k: int, *shape: int) -> Tensor:
    i = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return torch.sin(0.011 * i + k).view(shape).float()


def build() -> SVG:
    model = SVG(SVGConfig(), (7,)).eval()
    for name in MODULES:
        fill(getattr(model, name).state_dict(), gain=2.45, first=100 if name == "prior" else 0)
    return model


@cache
def run() -> dict[str, Any]:
    """``forced_steps`` of the model with weights by formula. Seconds long, hence kept."""
    return forced_steps(build())


def forced_steps(model: SVG) -> dict[str, Any]:
    """Three forced steps through the protocol, evaluation mode."""
    frames = torch.stack([0.5 + 0.5 * wave(t, B, 3, 64, 64) for t in range(K + 1)], 1)
    noise = torch.stack([wave(20 + t, B, 64) for t in range(1, K + 1)], 1)
    # A clip's condition[t] is c_{t-1}: it drives the step to frame t. Its first one drives nothing.
    condition = torch.stack([wave(10 + max(t - 1, 0), B, 7) for t in range(K + 1)], 1)
    with torch.no_grad():
        # The reference decodes all three steps, the burn-in's too, with the skip maps of frame 1.
        state = model.start(frames[:, :1], condition[:, :1])
        state = state._replace(skips=model.start(frames[:, 1:2], condition[:, 1:2]).skips)
        features = model.encode(condition[:, 1:], frames[:, 1:])
        steps, _ = model.unroll(state, frames[:, :-1], features, [noise], posterior=True)
    (q,), (p,), zeros = steps.q, steps.p, torch.zeros_like(noise)
    maps = {"h": features["h"], "mu": q.mu, "logvar": q.logvar, "prior_mu": p.mu, "x_hat": steps.x_hat}
    return {
        "maps": {f"{name}{t + 1}": v[:, t].double() for name, v in maps.items() for t in range(K)},
        "mse": (steps.x_hat - frames[:, 1:]).square().mean((0, 2, 3, 4)).sum().item(),
        "kl_fixed": kl_divergence(q, Gaussian(zeros, zeros)).sum().item() / B,
        "kl_learned": kl_divergence(q, p).sum().item() / B,
    }


@pytest.mark.shared
def test_state_dicts_are_the_originals(shared: Path) -> None:
    names = json.loads((shared / "parity" / "svg_names.json").read_text())
    assert set(names) == set(MODULES)
    with torch.device("meta"):
        model = SVG(SVGConfig(), (7,))
    for module in MODULES:
        state = getattr(model, module).state_dict()
        assert [[name, list(value.shape)] for name, value in state.items()] == names[module]
    beside = {"condition_mean", "condition_std"}  # 0 and 1 until they are set: nothing changes by them
    assert len(model.state_dict()) == sum(map(len, names.values())) + len(beside)
    assert beside < set(model.state_dict())


@pytest.mark.shared
def test_numbers_of_the_published_architecture(shared: Path) -> None:
    compare_with_published(run(), shared)


def compare_with_published(ours: dict[str, Any], shared: Path) -> None:
    """Compare the results of ``forced_steps`` with the published code's."""
    with np.load(shared / "parity" / "svg.npz") as file:
        theirs = {name: file[name] for name in file.files}
    for name, value in ours["maps"].items():
        shown = value[:, :, ::8, ::8] if name.startswith("x_hat") else value
        scale = np.abs(theirs[name]).max()
        np.testing.assert_allclose(shown, theirs[name], rtol=0, atol=1e-5 * scale, err_msg=name)
        if name.startswith("x_hat"):
            np.testing.assert_allclose(sums(value), theirs[f"{name}_sum"], rtol=1e-6, err_msg=name)
    for name in ("mse", "kl_fixed", "kl_learned"):
        assert ours[name] == pytest.approx(float(theirs[name]), rel=2e-6), name


def digest() -> dict[str, Any]:
    """The numbers of `run` that the golden file keeps."""
    ours = run()
    return {**ours, "maps": {name: sums(value) for name, value in ours["maps"].items()}}


def test_golden() -> None:
    golden, ours = json.loads(GOLDEN.read_text()), digest()
    for name, value in ours.pop("maps").items():
        assert value == pytest.approx(golden["maps"][name], rel=1e-5, abs=1e-4), name
    assert ours == pytest.approx({name: golden[name] for name in ours}, rel=1e-5)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(digest(), indent=1) + "\n")
