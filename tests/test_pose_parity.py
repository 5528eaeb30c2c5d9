"""Is this the course architecture? Weights by formula, numbers from the published code.

Run as a script (``python tests/test_pose_parity.py``) this records ``golden/pose.json`` anew.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cvaecli.models.pose import PoseConfig, PoseCVAE

GOLDEN = Path(__file__).parent / "golden" / "pose.json"
H, W = 32, 64
PARAMETERS = 1_585_620
# In training mode batch norm removes this bias: its true gradient is 0, what is computed is rounding.
NO_GRADIENT = "label_transformation.1.bias"
GOLDEN_GRADS = [
    "frame_transformation.0.conv1.weight",
    "label_transformation.1.weight",
    "label_transformation.2.weight",
    "Gaussian_Predictor.6.bias",
    "Decoder_Fusion.1.conv2.weight",
    "Generator.7.weight",
]


def fill(state: dict[str, Tensor], gain: float = 1.5, first: int = 0) -> None:
    """Set weights from the fractional part of a fast sine of their index."""
    for k, (name, value) in enumerate(state.items()):
        if not value.is_floating_point():
            continue
        i = torch.arange(value.numel(), dtype=torch.float64)
        v = 43758.5453 * torch.sin(12.9898 * i + 78.233 * (k + first))
        w = 2 * (v - v.floor()) - 1
        if value.dim() >= 2:
            w = w * gain / value[0].numel() ** 0.5
        elif name.endswith("running_var"):
            w = 1 + 0.1 * w.abs()
        elif name.endswith("running_mean") or not name.endswith("weight"):
            w = 0.05 * w
        else:
            w = 1 + 0.1 * w
        value.copy_(w.view(value.shape))


def picture(k: int, channels: int = 3) -> Tensor:
    i = torch.arange(2 * channels * H * W, dtype=torch.float64)
    return (0.5 + 0.5 * torch.sin(0.011 * i + k)).view(2, channels, H, W).float()


def build() -> PoseCVAE:
    model = PoseCVAE(PoseConfig(), (3, H, W))
    fill(model.state_dict())
    return model


@cache
def run(mode: str) -> dict[str, Any]:
    """``forced_step`` of the model with weights by formula. Seconds long, hence kept."""
    return forced_step(build().train(mode == "train"))


def forced_step(model: PoseCVAE) -> dict[str, Any]:
    """One forced step, forward and backward, through the protocol."""
    previous, target, label = picture(1), picture(2), picture(3)
    noise = 2 * picture(4, model.config.z_dim) - 1
    features = model.encode(label[:, None], target[:, None])
    step, _ = model.unroll((), previous[:, None], features, [noise[:, None]], posterior=True)
    mu, logvar = (t[:, 0] for t in step.q[0])
    x_hat = step.x_hat[:, 0]
    mse = (x_hat - target).square().mean()
    kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum() / 2
    (mse + 0.001 * kl).backward()
    with torch.no_grad():
        frame_features = model.frame_transformation(previous)
    maps = {
        "frame_features": frame_features,
        "label_features": features["label"][:, 0],
        "mu": mu,
        "logvar": logvar,
        "x_hat": x_hat,
    }
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {
        "maps": {name: value.detach().double() for name, value in maps.items()},
        "mse": mse.item(),
        "kl": kl.item(),
        "grad_norms": {name: g.double().norm().item() for name, g in grads.items() if g is not None},
    }


def sums(value: Tensor) -> list[float]:
    return [value.sum().item(), value.square().sum().item()]


@pytest.mark.shared
def test_state_dict_is_the_course_checkpoints(shared: Path) -> None:
    names = json.loads((shared / "parity" / "pose_names.json").read_text())
    model = PoseCVAE(PoseConfig(), (3, H, W))
    assert [[name, list(value.shape)] for name, value in model.state_dict().items()] == names["state_dict"]
    assert [name for name, _ in model.named_parameters()] == names["parameters"]


@pytest.mark.shared
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_numbers_of_the_published_architecture(shared: Path, mode: str) -> None:
    compare_with_published(run(mode), shared, mode)


def compare_with_published(ours: dict[str, Any], shared: Path, mode: str) -> None:
    """Compare the results of ``forced_step`` with the published code's."""
    with np.load(shared / "parity" / "pose.npz") as file:
        theirs = {k.removeprefix(f"{mode}/"): file[k] for k in file.files if k.startswith(mode)}
    for name, value in ours["maps"].items():
        np.testing.assert_allclose(sums(value), theirs[f"{name}_sum"], rtol=1e-5, err_msg=name)
        scale = np.abs(theirs[name]).max()
        np.testing.assert_allclose(
            value[:, :8, ::4, ::8], theirs[name], rtol=0, atol=1e-5 * scale, err_msg=name
        )
    assert ours["mse"] == pytest.approx(theirs["mse"], rel=1e-5)
    assert ours["kl"] == pytest.approx(theirs["kl"], rel=1e-5)
    norms = zip(ours["grad_norms"].items(), theirs["grad_norms"], strict=True)
    for (name, norm), expected in norms:
        tolerance = {"abs": 1e-3} if mode == "train" and name == NO_GRADIENT else {"rel": 1e-4}
        assert norm == pytest.approx(expected, **tolerance), name


def digest(mode: str) -> dict[str, Any]:
    """The handful of numbers of `run` that the golden file keeps."""
    ours = run(mode)
    return {
        "sums": {name: sums(value) for name, value in ours["maps"].items()},
        "mse": ours["mse"],
        "kl": ours["kl"],
        "grad_norms": {name: ours["grad_norms"][name] for name in GOLDEN_GRADS},
    }


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_golden(mode: str) -> None:
    golden, ours = json.loads(GOLDEN.read_text())[mode], digest(mode)
    for name, value in ours["sums"].items():
        assert value == pytest.approx(golden["sums"][name], rel=1e-5), name
    assert [ours["mse"], ours["kl"]] == pytest.approx([golden["mse"], golden["kl"]], rel=1e-5)
    assert ours["grad_norms"] == pytest.approx(golden["grad_norms"], rel=1e-4)


def test_size() -> None:
    model = PoseCVAE(PoseConfig(), (3, H, W))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS
    assert len(model.state_dict()) == 209


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({mode: digest(mode) for mode in ("eval", "train")}, indent=1) + "\n")
