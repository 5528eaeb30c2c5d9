"""The tool's path against the plain one of benchmarks/plain.py: losses, gradients, predictions in float32."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import BASE, CPU, SIZES, make_clip, make_config, run_events
from torch import Tensor

from cvaecli.api.loading import build_model
from cvaecli.config import loading as configs
from cvaecli.config.schema import RunConfig
from cvaecli.data.clip import Clip
from cvaecli.engine.fit import Trainer
from cvaecli.engine.rollout import prior_noise, rollout
from cvaecli.errors import UserError
from cvaecli.models.base import VideoCVAE
from cvaecli.terms import TRAIN_TERMS

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import plain
import plain_training

CLOSE = 1e-5
"""Relative, by the largest value or the norm."""

ROBOT: dict[str, Any] = {
    **BASE,
    "data": {"kind": "robot", "height": 32, "width": 32, "n_past": 2, "n_future": 3},
    "model": {"name": "svg", "width": 4, "g_dim": 8, "z_dim": 4, "rnn_size": 8},
    "train": {**BASE["train"], "window": 5, "batch_size": 3},
    "teacher_forcing": {"ratio": 1.0},
}


def pose(*overrides: str) -> RunConfig:
    return make_config("train.log_every=1", *overrides, model={**SIZES, "frame_dim": 16, "fusion_dim": 16})


def svg(*overrides: str) -> RunConfig:
    return configs.from_dict(copy.deepcopy(ROBOT), ["train.log_every=1", *overrides])


def robot_clip(name: str, seed: int) -> Clip:
    generator = np.random.default_rng(seed)
    frames = generator.integers(0, 255, (10, 3, 32, 32), dtype=np.uint8)
    return Clip(name, frames, generator.normal(size=(10, 7)).astype(np.float32))


def clips(config: RunConfig) -> list[Clip]:
    if config.model_name == "pose":
        return [make_clip(9, "a"), make_clip(10, "b", seed=1)]
    return [robot_clip("a", 0), robot_clip("b", 1)]


def build(config: RunConfig) -> VideoCVAE:
    """A model in which everything depends on everything, also where it starts with small weights."""
    model = build_model(config, clips(config)[0].condition.shape[1:])
    torch.manual_seed(1)
    model.set_condition_stats(torch.randn(7), torch.rand(7) + 0.5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if config.model_name == "svg" and p.dim() > 1:
                p.copy_(torch.randn_like(p) / p[0].numel() ** 0.5)
            elif "norm" not in name:
                p.add_(0.02 * torch.randn_like(p))
    return model


def both(config: RunConfig) -> tuple[Trainer, plain_training.PlainTrainer]:
    model = build(config)
    trainer = Trainer(copy.deepcopy(model), config, CPU, clips(config), [])
    return trainer, plain_training.PlainTrainer(model, config, CPU.torch, clips(config), trainer.sampler)


def gradient(model: VideoCVAE) -> Tensor:
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()]
    )


SWITCHES = ("model.output=sigmoid", "model.posterior=fed", "model.logvar_clamp=0.1", "data.n_past=2")
CASES = {
    "forced": pose("teacher_forcing.ratio=1"),
    "free": pose("teacher_forcing.ratio=0"),
    "detached": pose("teacher_forcing.ratio=0", "teacher_forcing.detach=on"),
    "a coin a step": pose("teacher_forcing.ratio=0.5", "teacher_forcing.coin=step"),
    "switches": pose(*SWITCHES),
    "mean": pose("train.time_reduction=mean", "train.grad_clip=null", "optim.name=adamw"),
    "vgg": svg(),
    # Group norm: the statistics of three rows amplify rounding step by step (in float64 they agree to 1e-14).
    "vgg, free": svg("teacher_forcing.ratio=0", "model.norm=group"),
    "dcgan, group": svg("model.backbone=dcgan", "model.norm=group", "model.prior=fixed"),
    "levels": svg("model.levels=[3,2]", "model.conditional_conv=true", "model.logvar_clamp=1"),
    "levels, free": svg("model.levels=[2]", "teacher_forcing.ratio=0", "model.norm=group"),
    "last frame": svg("model.last_frame_skip=true", "model.predictor_layers=1", "model.posterior_layers=2"),
    "legacy": svg("model.legacy_skip=true", "model.past_loss=false", "data.n_past=3", "train.batch_size=2"),
}


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_a_training_step_is_the_plain_one(config: RunConfig) -> None:
    trainer, reference = both(config)
    event = next(trainer.events())
    terms = event.terms  # type: ignore[union-attr]
    expected = reference.step()
    assert set(terms) == set(TRAIN_TERMS)
    weighted = terms.pop("kl_weighted")
    assert terms == pytest.approx(expected, rel=CLOSE)
    assert weighted == pytest.approx(expected["loss"] - expected["recon"], rel=1e-3, abs=1e-6)
    ours, theirs = gradient(trainer.model), gradient(reference.model)
    assert theirs.norm() > 0.01 and (ours - theirs).norm() < CLOSE * theirs.norm()


@pytest.mark.parametrize("config", [CASES["free"], CASES["dcgan, group"]], ids=["pose", "svg"])
def test_a_training_is_the_plain_one(config: RunConfig) -> None:
    config = configs.from_dict(config.to_dict(), ["train.epochs=1", "train.steps_per_epoch=4"])
    trainer, reference = both(config)
    ours = [event.terms["loss"] for event in run_events(trainer)[0] if event.terms]
    theirs = [reference.step()["loss"] for _ in range(4)]
    assert ours == pytest.approx(theirs, rel=1e-4) and len(set(theirs)) == 4


@pytest.mark.parametrize(
    "config", [CASES[name] for name in ("free", "switches", "vgg", "levels", "last frame", "legacy")]
)
def test_a_rollout_is_the_plain_one(config: RunConfig) -> None:
    model, clip, P = build(config).eval(), clips(config)[0], config.data.n_past
    frames = torch.from_numpy(clip.frames).float()[None] / 255
    condition = torch.from_numpy(clip.condition).float()[None] / (255 if clip.condition.ndim == 4 else 1)
    size = (config.data.height, config.data.width)
    noise = prior_noise(model, [clip.name], size, prior="sample", seed=3, n_past=P)
    pieces: Sequence[Tensor] = condition[:, P:].split(3, 1)
    past = frames[:, :P], condition[:, :P]
    expected = torch.stack(list(plain.rollout(model, *past, condition[:, P:].unbind(1), noise)), 1)
    ours = torch.cat(list(rollout(CPU.place(model), *past, pieces, noise, CPU)), 1)
    assert ours.shape == expected.shape and expected.std() > 0.01
    assert (ours - expected).abs().max() < CLOSE * expected.abs().max()


@pytest.mark.parametrize("override", ["train.ema=0.9", "train.recon=l1", "teacher_forcing.noise=0.1"])
def test_the_plain_path_refuses_what_it_does_not_do(override: str) -> None:
    with pytest.raises(UserError, match=override.partition("=")[0]):
        plain_training.check(pose(override))


def test_the_reference_model_has_no_plain_path() -> None:
    with pytest.raises(UserError, match="no plain path"):
        plain.begin(build_model(configs.load("reference"), (3, 16, 16)), 1)
