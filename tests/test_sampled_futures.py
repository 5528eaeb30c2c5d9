"""`cvae plot samples` from end to end: futures of a trained model are those that its validation scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import cvae

from cvaecli import api, checkpoint
from cvaecli.api.sampling import sample
from cvaecli.config import loading as configs
from cvaecli.errors import UserError
from cvaecli.synthetic import robot as pushing

RAW: dict[str, Any] = {
    "data": {"kind": "robot", "height": 32, "width": 32, "n_future": 5},
    "model": {
        **{"name": "svg", "backbone": "dcgan", "width": 4, "norm": "group", "g_dim": 8, "z_dim": 4},
        **{"rnn_size": 8, "conditional_conv": True, "conditional_z": True},
    },
    "train": {"epochs": 1, "steps_per_epoch": 2, "window": 7, "batch_size": 2},
    "teacher_forcing": {"ratio": 1.0},
    "runtime": {"device": "cpu", "precision": "fp32"},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("futures")
    pushing.write(home / "set", 32, 32, frames=8, train=2, val=2, test=2, stray=0.05)
    config = configs.from_dict(RAW, [f"data.root={home / 'set'}"])
    path: Path = api.train(config, name="a", runs=home / "runs").path
    # Hardly trained, z says nothing yet: let it scale what is drawn.
    best = path / "checkpoints" / "best.pt"
    saved = checkpoint.load(best)
    generator = torch.Generator().manual_seed(0)
    for name, weight in saved["model"].items():
        if name.endswith("modulate.weight"):
            weight.copy_(torch.randn(weight.shape, generator=generator))
    torch.save(saved, best)
    return path


def test_samples_are_those_of_the_validation(trained: Path) -> None:
    made = sample(trained, "test", 1, samples=3)
    with np.load(made) as file:
        truth, drawn, first = file["truth"], file["samples"], int(file["first"])
    assert truth.shape == (7, 32, 32, 3) and drawn.shape == (3, 5, 32, 32, 3) and first == 2
    mse = ((drawn / 255.0 - truth[first:] / 255.0) ** 2).mean((-3, -2, -1))
    psnr = (-10 * np.log10(mse)).mean(1)
    scored = api.validate(trained, ["eval.samples=3"], split="test")
    assert psnr.mean() == pytest.approx(scored["clips"][1]["psnr"], abs=0.02)
    assert psnr.max() - psnr.min() > 0.01, "and they differ"
    again = sample(trained, "test", 1, samples=2)
    with np.load(again) as file:
        assert (file["samples"] == drawn[:2]).all(), "a sample does not depend on how many there are"


def test_a_clip_that_is_not_there(trained: Path) -> None:
    with pytest.raises(UserError, match="--sequence 2: test has sequences 0 to 1"):
        sample(trained, "test", 2)


def test_python_draws_what_the_command_draws(trained: Path, tmp_path: Path) -> None:
    """`plot("samples")` samples the futures that it draws."""
    kept = trained / "predictions" / "test-1-futures.npz"
    kept.unlink(missing_ok=True)
    (path,) = api.plot("samples", [trained], out=tmp_path / "x.png", sequence=1, samples=2)
    assert path.stat().st_size > 10_000
    with np.load(kept) as file:
        assert len(file["samples"]) == 2
    with pytest.raises(UserError, match="samples=1"):
        api.plot("samples", [trained], samples=1)
    with pytest.raises(UserError, match="--label"):
        api.plot("compare", [trained], labels=["mine"])


def test_the_command_draws_them(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    command = ["plot", "samples", trained, "--sequence", 1, "--samples", 2, "--split", "val"]
    done = cvae(*command, "--label", "mine", "--out", out, "--json").good()
    assert json.loads(done.out) == {"written": [str(out)]} and out.stat().st_size > 10_000
    with np.load(trained / "predictions" / "val-1-futures.npz") as file:
        assert len(file["samples"]) == 2
    cvae("plot", "compare", trained, "--label", "mine").wrong("--label")
