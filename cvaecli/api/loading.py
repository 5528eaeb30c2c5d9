"""Load data, models and runs for the other modules of ``api``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import checkpoint as checkpoints
from .. import models
from ..config.schema import RunConfig
from ..data import loading as sources
from ..data.clip import VideoData
from ..data.report import capped
from ..engine.batches import sampling
from ..engine.device import Device, prepare, unusable_gpu
from ..engine.distributed import ALONE, World
from ..errors import UserError
from ..models.base import VideoCVAE
from ..reporter import Reporter, Silent
from ..run import Run, find

RUNS = Path("runs")

TRAINING_ONLY = {
    "eval.frames": "it limits validations during training; use data.n_future=N instead",
    "eval.clips": "it limits validations during training; here all clips of the split are used",
    "eval.every": "it only affects validations during training",
    "eval.sample_strips": "it only affects validations during training",
    "data.partial": "it limits the frames of a training",
}
"""Keys that a finished model's evaluation does not use, and what to do instead."""


def load_data(config: RunConfig, need: Sequence[str], reporter: Reporter, world: World = ALONE) -> VideoData:
    """The config's data set, decoded on first use. Its source and its warnings go to the reporter.

    On each machine one process decodes into the cache; the others wait and map what it wrote.
    """
    loaded: VideoData | None = None
    with world.agreeing():
        if world.local_rank == 0:
            loaded = _load_data(config, need, reporter)
    with world.agreeing():
        return loaded or _load_data(config, need, Silent())


def _load_data(config: RunConfig, need: Sequence[str], reporter: Reporter) -> VideoData:
    data = config.data
    for split in need:
        if split not in ("train", "val", "test"):
            raise UserError(f"--split {split}: no such split", "train, val or test")
    windows = sampling(config, models.load(config.model_name)) == "windows"
    # Pairs draw the given frames from anywhere in a clip, and only the others are consecutive.
    window = config.train.window
    train_frames = window if windows else max(data.n_past + 1, window - data.n_past)
    with reporter.task("Preparing data") as advance:
        loaded = sources.load(
            data.root,
            kind=data.kind,
            height=data.height,
            width=data.width,
            cuts=data.cuts,
            min_frames={"train": train_frames, "val": data.n_past + 1, "test": data.n_past + 1},
            train_frames=data.train_frames,
            need=need,
            progress=advance,
        )
    reporter.data_source(loaded.source + (" (no data.root given)" if data.root is None else ""))
    for line in capped(loaded.summary, loaded.source) if loaded.converted else []:
        reporter.note(line)
    for warning in loaded.warnings:
        reporter.warn(warning)
    return loaded


def warn_of_unusable_gpu(config: RunConfig, reporter: Reporter) -> None:
    """Say so if ``runtime.device=auto`` means another device although there is a GPU."""
    if config.runtime.device == "auto" and (reason := unusable_gpu()):
        reporter.warn(f"{reason}. Going on without it, which is much slower")


def build_model(config: RunConfig, condition_shape: Sequence[int]) -> VideoCVAE:
    """A new model on the CPU; its initial weights depend on the seed alone.

    Raises:
        UserError: the model does not fit the conditions, or cannot do what ``eval`` asks for.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = models.load(config.model_name)(config.model, tuple(condition_shape))
    model.average_over_flips(config.eval.average_flips)
    return model


def load_initial_weights(model: VideoCVAE, path: Path, reporter: Reporter) -> None:
    """Put weights into a new model: those of a run's checkpoint, or of another program's that it can read.

    Raises:
        UserError: the file is neither, or does not fit the model.
    """
    foreign = model.foreign_weights(path) if checkpoints.is_foreign(path) else None
    for note in foreign.notes if foreign else []:
        reporter.note(note)
    weights = foreign.state_dict if foreign else checkpoints.load(path)["model"]
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"train.init: {path}: does not fit this model: {_first_fault(error)}",
            "use the model section that it was trained with",
        ) from None
    reporter.note(f"starting from the weights of {path}")


def _first_fault(error: RuntimeError) -> str:
    """The first line of PyTorch's list of what does not fit, without its heading."""
    return str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)


class Opened(NamedTuple):
    """A trained model on its device, in evaluation mode, with its run, checkpoint and config."""

    run: Run
    path: Path  # the checkpoint
    config: RunConfig
    model: VideoCVAE
    device: Device
    checkpoint: dict[str, Any]


def open_run(
    run: str | Path | None,
    overrides: Sequence[str],
    runs: Path = RUNS,
    world: World = ALONE,
    *,
    config: RunConfig | None = None,
    unused: Mapping[str, str] = TRAINING_ONLY,
) -> Opened:
    """Load the model that RUN means (see ``run.find``), with overrides of data.*, eval.*, runtime.* and seed.

    Args:
        config: use this one, not the checkpoint's with the overrides.
        unused: keys that have no effect here, and what to do instead.

    Raises:
        UserError: no such run, a damaged checkpoint, or an override that does not apply.
    """

    def read() -> tuple[Run, Path, dict[str, Any]]:
        home, path = find(run, runs)
        refuse_overrides(overrides, ("data.", "eval.", "runtime.", "seed"), unused)
        return home, path, checkpoints.load(path)

    home, path, saved = world.once(read)
    config = config or checkpoints.config_of(saved, overrides)
    device = prepare(config.runtime)
    model = build_model(config, _condition_shape(saved, config))
    try:
        model.load_state_dict(saved["model"])
    except RuntimeError as error:
        raise UserError(
            f"{path}: its weights do not fit the model of its config: {_first_fault(error)}",
            "use another checkpoint of the run",
        ) from None
    model = device.for_inference(device.place(model).eval())
    return Opened(home, path, config, model, device, saved)


def load_run_data(opened: Opened, need: Sequence[str], reporter: Reporter, world: World = ALONE) -> VideoData:
    """The data of a trained model's config, as ``load_data``.

    Raises:
        UserError: also where the conditions are not of the kind that the model was trained with.
    """
    data = load_data(opened.config, need, reporter, world)
    expected = tuple(_condition_shape(opened.checkpoint, opened.config))
    with world.agreeing():
        shapes = (clip.condition.shape[1:] for clips in data.splits.values() for clip in clips)
        found = next(shapes, expected)
        if found != expected:
            raise UserError(
                f"{data.source}: the conditions are {_described(found)}; the model was trained with"
                f" {_described(expected)}",
                "give data.root and data.kind of such data, or another run",
            )
    return data


def _described(condition_shape: Sequence[int]) -> str:
    return f"vectors of {condition_shape[0]} numbers" if len(condition_shape) == 1 else "label images"


def _condition_shape(saved: Mapping[str, Any], config: RunConfig) -> list[int]:
    """Label images take the size of ``data.height`` x ``data.width``, which may be overridden."""
    shape = list(saved["condition_shape"])
    return [shape[0], config.data.height, config.data.width] if len(shape) == 3 else shape


def refuse_overrides(
    overrides: Sequence[str], allowed: tuple[str, ...], unused: Mapping[str, str] | None = None
) -> None:
    """Refuse an override that is not allowed here, or would have no effect.

    Args:
        allowed: prefixes of the allowed keys.
        unused: keys among them that have no effect, and what to do instead.

    Raises:
        UserError: names the key.
    """
    for override in overrides:
        key = override.partition("=")[0].strip()
        if not key.startswith(allowed):
            raise UserError(
                f"{key}: is fixed by the training and cannot be changed here",
                f"these can: {', '.join(p + '*' if p.endswith('.') else p for p in allowed)}",
            )
        if unused and key in unused:
            raise UserError(f"{key}: has no effect here", unused[key])
