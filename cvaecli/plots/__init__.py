"""Figures from a run folder's files alone: metrics.csv, steps.csv, eval/<split>/, config.yaml.

Neither torch nor the run's data is needed, so a copied folder plots anywhere. Several runs make one
comparison; a run keeps its colour *and* its line style, for readers who print in grey.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import yaml
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..errors import UserError
from ..files import replacing
from . import figures
from .compare import compare_figure, write_tables
from .figures import Request, Run
from .psnr import psnr_figure
from .samples import samples_figure
from .tables import AbsentError, Array

KINDS = ("loss", "psnr", "epochs", "beta", "tfr", "kl")
"""Figures that any run allows, which ``all`` draws."""
SPECIAL = ("samples", "compare")
FORMATS = (".png", ".pdf", ".svg")


def plot(
    kind: str,
    runs: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    labels: Sequence[str] | None = None,
    split: str | None = None,
    log: bool | None = None,
) -> list[Path]:
    """Draw one figure, or with ``kind="all"`` every figure that the files allow.

    ======== ====================================================================================
    loss     training and validation loss against epoch, marked where the epoch was teacher-forced
    psnr     dB of each predicted frame: rollout, one step, trivial predictors; mean over clips, for
             one run of several samples with a band from worst to best sample, else from worst to
             best clip
    epochs   validation PSNR against epoch, above beta and teacher-forcing ratio
    beta     KL weight; tfr: teacher-forcing ratio; kl: KL in nats per frame. Against epoch, or
             against step where beta (tfr) moves within an epoch and all runs have a steps.csv
    samples  several futures of one clip beside the truth, and how far they differ; from the files of
             ``api.futures``
    compare  settings over seeds: runs that differ only in seed make one line, with its spread. Writes a
             table (.md, a row a setting; .csv, a row a run) beside the figure
    ======== ====================================================================================

    Args:
        kind: one of ``KINDS`` or ``SPECIAL``, or ``all``, which means ``KINDS``.
        runs: run folders; several make one comparison figure.
        out: .png (300 dpi), .pdf or .svg; or a folder. Default: ``RUN/plots/KIND.png``, for several runs
            ``plots/KIND-A-vs-B.png`` beside the first.
        labels: one a run; default: the folder's name, in comparisons with its KL schedule.
        split: of ``psnr`` and ``compare``; default: val, else a split that all runs were evaluated on. Of
            ``samples``; default: that of the last sampled clip.
        log: logarithmic y axis of ``loss`` and ``kl``; default: where the values span a factor of 10.

    Returns:
        The files written, each moved into place when complete.

    Raises:
        UserError: unknown kind or suffix, a missing file, or a damaged one (with its line number).
    """
    if kind not in (*KINDS, *SPECIAL, "all"):
        raise UserError(f"unknown plot {kind!r}", f"one of {', '.join((*KINDS, *SPECIAL, 'all'))}")
    request = Request(_runs(runs, labels), split, log)
    if kind != "all":
        path = _draw(kind, request, _target(kind, request.runs, out))
        return [path, *(write_tables(request, path) if kind == "compare" else [])]
    if out is not None and Path(out).suffix and not Path(out).is_dir():
        raise UserError(f"{out}: `all` makes several figures", "give a folder")
    paths, absent = [], []
    for each in KINDS:
        try:
            paths.append(_draw(each, request, _target(each, request.runs, out)))
        except AbsentError as error:
            absent.append(error)
    if not paths:
        raise absent[0]
    return paths


def _draw(kind: str, request: Request, target: Path) -> Path:
    buffer = io.BytesIO()
    with mpl.rc_context(figures.RC):
        _DRAWERS[kind](request).savefig(buffer, format=target.suffix[1:].lower(), dpi=300)
    with replacing(target) as part:
        part.write_bytes(buffer.getvalue())
    return target


# ---------------------------------------------------------------- runs and names


def _runs(folders: Sequence[str | Path], labels: Sequence[str] | None) -> list[Run]:
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise UserError("no run to plot", "name one or several run folders")
    for path in paths:
        if not path.is_dir():
            raise UserError(f"there is no run folder {path}", "`cvae train` makes one under runs/")
    if labels is None:
        labels = [path.resolve().name for path in paths]  # of the run that runs/latest stands for
        if len(set(labels)) < len(labels):
            labels = [str(path) for path in paths]
        if len(paths) > 1:
            labels = [_with_schedule(path, label) for path, label in zip(paths, labels, strict=True)]
    if len(labels) != len(paths):
        raise UserError(f"{len(paths)} runs, but {len(labels)} labels")
    colours, lines = figures.COLOURS, figures.LINES
    styles = [
        {"color": colours[i % len(colours)], "linestyle": lines[i % len(lines)]} for i in range(len(paths))
    ]
    return [Run(*run) for run in zip(paths, labels, styles, strict=True)]


def _with_schedule(folder: Path, label: str) -> str:
    """The label with the run's KL schedule, unless it says so; a run without a config keeps its label."""
    try:
        schedule = str(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["kl"]["schedule"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return label
    return label if schedule.lower() in label.lower() else f"{label} ({schedule})"


def _target(kind: str, runs: Sequence[Run], out: str | Path | None) -> Path:
    name = kind
    if len(runs) > 1:
        names = [re.sub(r"[^\w.-]+", "_", run.folder.resolve().name) for run in runs]
        name += f"-{names[0]}-vs-" + (names[1] if len(runs) == 2 else f"{len(runs) - 1}-others")
    if out is None:
        home = runs[0].folder if len(runs) == 1 else runs[0].folder.parent
        return home / "plots" / f"{name}.png"
    path = Path(out)
    if path.is_dir() or not path.suffix:
        return path / f"{name}.png"
    if path.suffix.lower() not in FORMATS:
        raise UserError(
            f"{path}: unknown suffix {path.suffix!r}", f"one of {', '.join(FORMATS)}, or a folder"
        )
    return path


# ---------------------------------------------------------------- loss, kl


@dataclass(frozen=True)
class _Curves:
    """A run's training and validation values; ``forced`` belongs to the x of both."""

    run: Run
    train: tuple[Array, Array]
    val: tuple[Array, Array]
    forced: Array | None = None


def _loss(request: Request) -> Figure:
    curves = []
    for run in request.runs:
        table = run.table("metrics.csv", ["epoch", "train/loss"], ["val/loss", "forced"])
        epoch, forced = table["epoch"], table["forced"]
        forced_or_not = forced if np.isfinite(forced).any() else None
        train, val = (epoch, table["train/loss"]), (epoch, table["val/loss"])
        curves.append(_Curves(run, train, val, forced_or_not))
    return _train_and_val(curves, "loss", " (recon + weighted KL)", "epoch", request)


def _kl(request: Request) -> Figure:
    by_step = _within_epochs(request.runs, "beta")
    x = "step" if by_step else "epoch"
    curves = []
    for run in request.runs:
        epochs = run.table("metrics.csv", [x, "train/kl"], ["val/kl"])
        train = (epochs[x], epochs["train/kl"])
        if by_step:
            steps = run.table("steps.csv", ["step", "kl"])
            train = (steps["step"], steps["kl"])
        curves.append(_Curves(run, train, (epochs[x], epochs["val/kl"])))
    return _train_and_val(curves, "KL", " (nats per frame)", x, request)


def _train_and_val(curves: Sequence[_Curves], name: str, unit: str, x: str, request: Request) -> Figure:
    """One run: both curves in one axes. Several: training above validation, a colour and line a run."""
    with_val = any(np.isfinite(curve.val[1]).any() for curve in curves)
    stacked = request.comparison and with_val
    figure, axes = figures.new_figure(4.6, (1, 1)) if stacked else figures.new_figure(3.0)
    handles: list[Line2D] = []
    for curve in curves:
        parts = [(axes[0], "training", curve.train, "o", "-")]
        if with_val:
            parts.append((axes[-1], "validation", curve.val, "s", figures.DASHED))
        for place, part, (at, value), shape, dashes in parts:
            style = curve.run.style
            if not request.comparison:
                colour = figures.COLOURS[part == "validation"] if curve.forced is None else "0.35"
                style = {"color": colour, "linestyle": dashes}
            marked: dict[str, Any] = {} if curve.forced is None else {"marker": ""}
            figures.line(place, at, value, **style, **marked)
            if curve.forced is not None:
                kind = {"colour": curve.run.colour} if request.comparison else {"shape": shape}
                figures.mark_forced(place, at, value, curve.forced, **kind)
                marked = {"marker": "" if request.comparison else shape, "markersize": 4}
            if not request.comparison or part == "training":
                label = curve.run.label if request.comparison else part
                handles.append(figures.key(label, **style, **marked))
    if forced := [curve.forced for curve in curves if curve.forced is not None]:
        handles += figures.forced_keys(forced, comparison=request.comparison)
    for place, part in zip(axes, ("training ", "validation "), strict=False):
        # What the loss is made of does not fit beside half a figure
        place.set_ylabel(part + name + (unit if name == "KL" else "") if stacked else name + unit)
    _share_scale(axes, curves, request.log)
    figures.x_axis(axes[-1], _X_LABEL[x])
    figures.legend(figure, handles, request.title)
    return figure


def _share_scale(axes: Sequence[Any], curves: Sequence[_Curves], log: bool | None) -> None:
    for place in axes:
        figures.y_scale(place, [part[1] for curve in curves for part in (curve.train, curve.val)], log)


# ---------------------------------------------------------------- beta, tfr, epochs


def _schedule(column: str, label: str) -> Callable[[Request], Figure]:
    def draw(request: Request) -> Figure:
        by_step = _within_epochs(request.runs, column)
        x, file = ("step", "steps.csv") if by_step else ("epoch", "metrics.csv")
        figure, [axes] = figures.new_figure(2.6)
        handles, forced = [], []
        for run in request.runs:
            table = run.table(file, [x, column], ["forced"])
            coins = column == "tfr" and not by_step and np.isfinite(table["forced"]).any()
            style = run.style | ({"marker": ""} if coins else {})
            handles.append(figures.line(axes, table[x], table[column], label=run.label, **style))
            if coins:
                figures.mark_forced(axes, table[x], table[column], table["forced"], colour=run.colour)
                forced.append(table["forced"])
        if forced:
            handles += figures.forced_keys(forced, comparison=True)
        axes.set_ylabel(label)
        figures.x_axis(axes, _X_LABEL[x])
        figures.legend(figure, handles if request.comparison else handles[1:], request.title)
        return figure

    return draw


def _within_epochs(runs: Sequence[Run], column: str) -> bool:
    """Whether ``column`` moves within an epoch in any run, and all runs have the steps to show it."""
    if not all((run.folder / "steps.csv").is_file() for run in runs):
        return False
    for run in runs:
        table = run.table("steps.csv", ["epoch", column])
        change = np.abs(np.diff(table[column]))
        if (change[np.diff(table["epoch"]) == 0] > 1e-9).any():
            return True
    return False


def _epochs(request: Request) -> Figure:
    """Validation PSNR; beta and tfr on a second axis, or in panels below where runs are compared."""
    if request.comparison:
        return _epochs_compared(request)
    (run,) = request.runs
    figure, [axes] = figures.new_figure(3.0)
    table = _validated(run)
    epoch, one_step = table["epoch"], table["val/psnr_one_step"]
    label = f"rollout: {_best(table)}"
    handles = [figures.line(axes, epoch, table["val/psnr"], label=label, color=figures.COLOURS[0])]
    if np.isfinite(one_step).any():
        style = {"color": figures.COLOURS[1], "linestyle": figures.DASHED}
        handles.append(figures.line(axes, epoch, one_step, label="one step", **style))
    second = axes.twinx()
    second.spines["right"].set_visible(True)
    second.grid(False)
    for column, label, style in (
        ("beta", "β (right)", {"color": "0.35", "linestyle": figures.DOTTED}),
        ("tfr", "tfr (right)", {"color": figures.COLOURS[2], "linestyle": figures.LINES[3]}),
    ):
        handles.append(figures.line(second, epoch, table[column], label=label, marker="", **style))
    second.set_ylim(bottom=0)
    second.set_ylabel("β, teacher-forcing ratio")
    axes.set_ylabel("validation PSNR (dB)")
    figures.x_axis(axes, "epoch")
    figures.legend(figure, handles, request.title)
    return figure


def _epochs_compared(request: Request) -> Figure:
    figure, axes = figures.new_figure(4.6, (2.6, 1, 1))
    handles = []
    for run in request.runs:
        table = _validated(run)
        label = f"{run.label}: {_best(table)}"
        handles.append(figures.line(axes[0], table["epoch"], table["val/psnr"], label=label, **run.style))
        for place, column in zip(axes[1:], ("beta", "tfr"), strict=True):
            figures.line(place, table["epoch"], table[column], marker="", **run.style)
    for place, label in zip(axes, ("validation PSNR (dB)", "β", "forcing ratio"), strict=True):
        place.set_ylabel(label)
    figures.x_axis(axes[-1], "epoch")
    figures.legend(figure, handles, request.title)
    return figure


def _validated(run: Run) -> dict[str, Array]:
    table = run.table("metrics.csv", ["epoch", "beta", "tfr"], ["val/psnr", "val/psnr_one_step"])
    if not np.isfinite(table["val/psnr"]).any():
        raise AbsentError(
            f"{run.folder / 'metrics.csv'} has no validation PSNR", "train with eval.every above 0"
        )
    return table


def _best(table: dict[str, Array]) -> str:
    best = int(np.nanargmax(table["val/psnr"]))
    return f"best {table['val/psnr'][best]:.2f} dB, epoch {table['epoch'][best]:.0f}"


# ---------------------------------------------------------------- all kinds

_X_LABEL = {"epoch": "epoch", "step": "training step"}
_DRAWERS: dict[str, Callable[[Request], Figure]] = {
    "loss": _loss,
    "psnr": psnr_figure,
    "epochs": _epochs,
    "beta": _schedule("beta", "KL weight β"),
    "tfr": _schedule("tfr", "teacher-forcing ratio"),
    "kl": _kl,
    "samples": samples_figure,
    "compare": compare_figure,
}
