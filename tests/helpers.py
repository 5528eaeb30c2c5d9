"""Tiny clips, configs, data sets and models that the engine's tests share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from cvaecli.cli import app
from cvaecli.config import loading as configs
from cvaecli.config.schema import RunConfig
from cvaecli.data.clip import Clip
from cvaecli.engine.batches import Batch
from cvaecli.engine.device import Device
from cvaecli.engine.events import EpochEvent, Event, StepEvent
from cvaecli.engine.fit import Trainer
from cvaecli.models.base import Features, Gaussian, ModelConfig, State, Step, VideoCVAE
from cvaecli.models.pose import PoseConfig, PoseCVAE

CPU = Device(torch.device("cpu"), False)
QUICK = {"name": "anchored", "widths": [16, 16], "encoder_blocks": [0, 1], "decoder_blocks": [0]}
"""A model whose step takes a third of the time that one of ``SIZES`` takes, which has 200 layers."""
SIZES = {"name": "pose", "frame_dim": 8, "label_dim": 2, "z_dim": 4, "fusion_dim": 8}
BASE: dict[str, Any] = {
    "data": {"height": 8, "width": 8, "cuts": "none"},
    "model": SIZES,
    "train": {"epochs": 2, "window": 4, "batch_size": 2, "log_every": 2},
    "optim": {"lr": 1e-3, "schedule": "constant"},
    "eval": {"every": 1, "batch_size": 2},
    "runtime": {"device": "cpu", "precision": "fp32"},
}


def make_config(*overrides: str, **sections: dict[str, Any] | None) -> RunConfig:
    """The tiny config with some keys changed, and sections that are None left out; another model's section
    replaces that of ``BASE``."""
    raw = copy.deepcopy(BASE)
    for name, section in sections.items():
        if name == "model" and section and "name" in section:
            raw["model"] = section
        else:
            raw[name] = None if section is None else {**raw.get(name, {}), **section}
    return configs.from_dict(raw, overrides)


SMALL_MODELS = {
    "pose": ["model.frame_dim=8", "model.label_dim=2", "model.z_dim=4", "model.fusion_dim=8"],
    "svg": ["model.width=4", "model.g_dim=8", "model.z_dim=4", "model.rnn_size=8"],
}
SMALL_MODELS["reference"] = SMALL_MODELS["anchored"] = [
    *("model.widths=[16,16]", "model.encoder_blocks=[0,1]", "model.decoder_blocks=[0]"),
]


def small_overrides(name: str) -> list[str]:
    """Overrides that bring a built-in config to a tiny model, frames of 16x16 (the least of svg) and windows
    of at most 4 frames."""
    run = configs.load(name)
    sizes = ["data.height=16", "data.width=16", f"train.window={min(run.train.window, 4)}"]
    return [*SMALL_MODELS[run.model_name], *sizes, "train.epochs=1", "runtime.device=cpu"]


def make_clip(n: int, name: str = "clip", size: int = 8, seed: int = 0, steps: int | None = None) -> Clip:
    """A block that moves over a gradient; ``steps`` conditions, as many as frames when unset."""
    steps = n if steps is None else steps
    frames = np.zeros((steps, 3, size, size), dtype=np.uint8)
    labels = np.full((steps, 3, size, size), 255, dtype=np.uint8)
    shade = np.linspace(60, 180, size).astype(np.uint8)
    for t in range(steps):
        at = (t + 3 * seed) % (size - 2)
        frames[t] = shade[None, None, :]
        frames[t, :, 2:5, at : at + 2] = 20 + 7 * (t % 10)
        labels[t, :, 2:5, at : at + 2] = np.array([255, 20 * (t % 10), 0], dtype=np.uint8)[:, None, None]
    return Clip(name, frames[:n], labels)


def make_model(seed: int = 0, size: int = 8, **settings: Any) -> PoseCVAE:
    """A tiny pose model in evaluation mode."""
    torch.manual_seed(seed)
    return PoseCVAE(PoseConfig(**{**SIZES, **settings}), (3, size, size)).eval()


def make_trainer(
    config: RunConfig | None = None,
    train: Sequence[Clip] | None = None,
    val: Sequence[Clip] | None = None,
    device: Device = CPU,
) -> Trainer:
    """A trainer on two tiny clips; the model's weights depend on the config's seed alone."""
    config = config or make_config()
    train = [make_clip(9, "a"), make_clip(10, "b", seed=1)] if train is None else train
    val = [make_clip(6, "v", seed=2)] if val is None else val
    torch.manual_seed(config.seed)
    model = PoseCVAE(PoseConfig(**config.model.model_dump()), train[0].condition.shape[1:])
    return Trainer(model, config, device, train, val)


def run_events(trainer: Trainer) -> tuple[list[StepEvent], list[EpochEvent]]:
    """Train to the end."""
    events: list[Event] = list(trainer.events())
    steps = [event for event in events if isinstance(event, StepEvent)]
    return steps, [event for event in events if isinstance(event, EpochEvent)]


def predicted(trainer: Trainer, batch: Batch) -> Step:
    """What the next training step predicts for a batch, z from the posterior."""
    coins = trainer._forced(trainer.step)
    first, *_ = trainer._loss.groups(batch, 0, trainer.step, coins)
    return trainer._loss.predict(first, coins, trainer._scheduled(trainer.step).tfr)


def write_set(root: Path, train: int = 20, val: int = 7, test: int = 2, size: int = 8) -> Path:
    """The tiny clips as a data set on disk; test sequences have one frame and ``val`` labels."""
    write_frames(make_clip(train, size=size), root / "train/train_img", root / "train/train_label")
    write_frames(make_clip(val, size=size, seed=1), root / "val/val_img", root / "val/val_label")
    for s in range(test):
        clip = make_clip(1, size=size, seed=2 + s, steps=val)
        write_frames(clip, root / f"test/test_img/{s}", root / f"test/test_label/{s}")
    return root


def write_frames(clip: Clip, images: Path, labels: Path) -> None:
    for folder, pictures in ((images, clip.frames), (labels, clip.condition)):
        folder.mkdir(parents=True)
        for t, picture in enumerate(pictures):
            Image.fromarray(np.moveaxis(picture, 0, -1)).save(folder / f"{t}.png")


def yaml_config(folder: Path, data: Path, **sections: dict[str, Any]) -> Path:
    """The tiny config with the quick model and a data set, as a file."""
    path = folder / "tiny.yaml"
    sections = {"model": QUICK, **sections, "data": {**BASE["data"], "root": str(data)}}
    path.write_text(make_config(**sections).to_yaml())
    return path


class Operators(TorchDispatchMode):
    """The names of the operators that ran, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


class AddingCVAE(VideoCVAE):
    """``x_hat = w (x_prev + condition) + a count of steps / 1000``: every feedback path can be written out.

    The state is the number of steps done. z does not reach the picture.
    """

    Config: ClassVar[type[ModelConfig]] = ModelConfig

    def __init__(self, weight: float = 0.5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def noise_shapes(self, size: tuple[int, int]) -> list[tuple[int, ...]]:
        return [(2,)]

    def encode(self, condition: Tensor, targets: Tensor | None = None) -> Features:
        return {"c": condition}

    def start(self, past: Tensor, condition: Tensor) -> State:
        return (torch.zeros(past.shape[0]),)

    def step(
        self, state: State, x_prev: Tensor, features: Features, noise: Sequence[Tensor], posterior: bool
    ) -> tuple[Step, State]:
        (count,) = state
        x_hat = self.weight * (x_prev + features["c"]) + count[:, None, None, None] / 1000
        zeros = torch.zeros_like(noise[0])
        gaussian = (Gaussian(zeros, zeros),)
        return Step(x_hat, gaussian if posterior else (), gaussian), (count + 1,)


class ReferenceToy(VideoCVAE):
    """``x_hat = reference + w (condition + z)``, all steps at once; z has one number a frame."""

    Config: ClassVar[type[ModelConfig]] = ModelConfig
    parallel: ClassVar[bool] = True
    sampling: ClassVar[str] = "pairs"

    def __init__(self, weight: float = 0.5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def noise_shapes(self, size: tuple[int, int]) -> list[tuple[int, ...]]:
        return [(1,)]

    def encode(self, condition: Tensor, targets: Tensor | None = None) -> Features:
        return {"c": condition}

    def start(self, past: Tensor, condition: Tensor) -> State:
        return past[:, -1]

    def step(
        self, state: State, x_prev: Tensor, features: Features, noise: Sequence[Tensor], posterior: bool
    ) -> tuple[Step, State]:
        zeros = torch.zeros_like(noise[0])
        gaussian = (Gaussian(zeros, zeros),)
        x_hat = state + self.weight * (features["c"] + noise[0][..., None, None])
        return Step(x_hat, gaussian if posterior else (), gaussian), state


class Result:
    """What a command left: exit code, stdout, stderr."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = [str(a) for a in arguments]
        result = CliRunner().invoke(app, self.arguments)
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr
        self.exception = result.exception

    def good(self) -> Result:
        assert self.code == 0, f"{self.arguments}\n{self.out}{self.err}{self.exception!r}"
        return self

    def wrong(self, *told: str, code: int = 2, lines: int = 1) -> Result:
        """A user's mistake: exit code, nothing on stdout, one line on stderr after the data's."""
        assert self.code == code, (self.code, self.out, self.err)
        assert self.exception is None or isinstance(self.exception, SystemExit), self.exception
        said = [line for line in self.err.splitlines() if not line.startswith("data: ")]
        assert self.out == "" and len(said) == lines and "Traceback" not in self.err, self.err
        for text in told:
            assert text in self.err
        return self

    def usage(self, *told: str) -> None:
        """A mistake that Typer's own parser reports."""
        assert self.code == 2 and self.out == "" and "Usage" in self.err, (self.code, self.out, self.err)
        words = in_one_line(self.err)
        for text in told:
            assert text in words, words


def cvae(*arguments: object) -> Result:
    """Run a command in this process."""
    return Result(*arguments)


def in_one_line(text: str) -> str:
    """What a command prints into boxes and tables, without their vertical edges and line breaks."""
    return " ".join(text.replace("│", " ").split())
