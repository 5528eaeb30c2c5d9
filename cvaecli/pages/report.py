"""The page of one run: its settings and data, a diagnosis in words, all figures, how to reproduce it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluations import read_per_frame
from ..files import write_text
from ..tables import AbsentError, read_table
from . import diagnosis, render
from .compare import measures, protocol_words
from .folders import RunFolder, choose_split, read_runs
from .settings import Group, flatten, shown

CAPTIONS = {
    "psnr": "PSNR of each predicted frame. Where the rollout falls below one step, errors are fed back and "
    "grow; where it falls below the trivial predictors, nothing is gained by predicting.",
    "loss": "Loss of training and validation. Where training falls and validation rises, the model "
    "memorises its training frames.",
    "epochs": "Validation PSNR during training; the KL weight and the teacher-forcing ratio are on the right "
    "axis.",
    "training": "Loss on the left axis, the schedules on the right one. Points are coloured by whether the "
    "model was fed true frames or its own.",
    "beta": "The weight of the KL term during training.",
    "tfr": "The share of inputs that were true frames instead of the model's own predictions.",
    "kl": "The information in the latent. Near zero the latent has collapsed.",
    "gap": "What z from the posterior, which has seen the frame, adds to z from the prior. Where the curves "
    "meet, the latent says nothing about the frame.",
    "lr": "The learning rate during training.",
}
"""How to read each figure of ``cvaecli.plots``."""


@dataclass(frozen=True)
class Curves:
    """The curves of ``metrics.csv`` and ``per_frame.csv``, if these files exist."""

    epochs: Mapping[str, np.ndarray] | None
    frames: Mapping[str, np.ndarray] | None  # means over the clips that have the frame


def write(folder: Path, out: Path, split: str | None = None) -> Path:
    """Write the page of one run.

    Args:
        folder: the run's folder.
        out: .html.
        split: which evaluation; default: val if there is one.

    Raises:
        UserError: another suffix, or a damaged file.
    """
    render.check_suffix(out.suffix.lower(), (".html",), out)
    (run,) = read_runs([folder], choose_split([folder], split))
    write_text(out, _page(run))
    return out


def _page(run: RunFolder) -> str:
    from . import pictures
    from .figures import run_figures
    from .svg import inline, to_svg

    curves, video = _curves(run), pictures.video_of(run.path, run.split)
    group = Group(run.protocol | {"frames": run.frames} if run.summary else {}, [], [])
    figures = [
        {"svg": inline(to_svg(figure), kind, kind), "caption": CAPTIONS.get(kind, "")}
        for kind, figure in run_figures(run).items()
    ]
    return render.page(
        "report.html",
        run=run,
        facts=facts(run),
        sentences=sentences(run, curves, video),
        stretch=_stretch(curves, video),
        numbers=_numbers(run),
        group={"protocol": protocol_words(group), "measures": measures(group) if run.summary else {}},
        figures=figures,
        sprites=pictures.sprites([("prediction", video)] if video else []),
        strip=pictures.strip_of(run.path, run.split),
        commands=_commands(run),
    )


def facts(run: RunFolder) -> dict[str, str]:
    """The model, the data and the main settings; unknown ones are left out."""
    info, config = run.info, flatten(run.config)
    data, parameters = info.get("data"), info.get("parameters")

    def settings_in(section: str, *keys: str) -> str:
        values = {key.replace("_", " "): config.get(f"{section}.{key}") for key in keys}
        return ", ".join(f"{key} {shown(value)}" for key, value in values.items() if value is not None)

    minutes = run.number("minutes")
    cycles = ("cycles",) if config.get("kl.schedule") == "cyclical" else ()
    found = {
        "data": _source(data) if isinstance(data, dict) else "",
        "frames": settings_in("data", "height", "width", "n_past", "n_future"),
        "model": shown(config.get("model.name", "?"))
        + (f", {parameters:,} parameters" if isinstance(parameters, int) else ""),
        "training": settings_in("train", "epochs", "steps_per_epoch", "batch_size", "window"),
        "optimiser": settings_in("optim", "name", "lr", "schedule"),
        "KL": settings_in("kl", "schedule", *cycles, "weight"),
        "teacher forcing": settings_in("teacher_forcing", "ratio", "decay", "coin"),
        "time": "" if math.isnan(minutes) else f"{minutes:.1f} minutes, {info.get('steps', '?')} steps",
        "device": " ".join(str(info[key]) for key in ("device", "precision") if key in info),
        "seed": str(run.seed),
        "status": str(info.get("status", "")),
        "started": str(info.get("started", "")).replace("T", " "),
    }
    return {name: words for name, words in found.items() if words}


def _source(data: Mapping[str, Any]) -> str:
    return f"{data.get('source', '?')} (fingerprint {data.get('fingerprint', '?')})"


def sentences(run: RunFolder, curves: Curves, video: Any = None) -> list[str]:
    """The diagnosis: a sentence or two for each question that the run's files answer.

    Args:
        video: the run's ``pictures.Video``, to examine the labels of the worst frames.
    """
    found = []
    if run.summary is not None:
        trivial = [run.trivial(name) for name in ("repeat_last_past", "mean_frame")]
        found.append(diagnosis.against_trivial(run.number("psnr"), *trivial))
        found.append(diagnosis.latent(run.number("kl"), run.number("posterior_prior_gap")))
    if curves.frames is not None and len(curves.frames["psnr"]):
        at, psnr = curves.frames["frame"], curves.frames["psnr"]
        if "psnr_one_step" in curves.frames:
            found.append(diagnosis.drift(at, psnr, curves.frames["psnr_one_step"]))
        words = diagnosis.worst(at, psnr)
        if video is not None and video.condition is not None:
            first, last, _ = diagnosis.worst_stretch(at, psnr)
            if last < len(video.condition):
                from .pictures import ink

                words += " " + diagnosis.labels(ink(video.condition), first, last)
        found.append(words)
    if run.summary is not None and len(run.summary.get("clips", [])) > 1:
        found.append(diagnosis.worst_clip({str(c["name"]): c["psnr"] for c in run.summary["clips"]}))
    if curves.epochs is not None:
        there = np.isfinite(curves.epochs["val/psnr"])
        epoch, psnr, recon = (curves.epochs[name][there] for name in ("epoch", "val/psnr", "train/recon"))
        found.append(diagnosis.over_fitting(epoch + 1, psnr, recon))
    return found


def _curves(run: RunFolder) -> Curves:
    from .figures import over_clips

    try:
        epochs = read_table(run.path / "metrics.csv", ["epoch"], ["val/psnr", "train/recon"])
    except AbsentError:
        epochs = None
    try:
        table = read_per_frame(run.path, run.split)
    except AbsentError:
        return Curves(epochs, None)
    at, psnr = over_clips(table["frame"], table["psnr"])
    frames = {"frame": at, "psnr": psnr}
    same, one_step = over_clips(table["frame"], table["psnr_one_step"])
    if np.array_equal(same, at):
        frames["psnr_one_step"] = one_step
    return Curves(epochs, frames)


def _stretch(curves: Curves, video: Any) -> str | None:
    """The worst frames as a picture; None if the frames are not available."""
    from .pictures import stretch_strip

    if curves.frames is None or video is None or video.truth is None or not len(curves.frames["psnr"]):
        return None
    first, last, _ = diagnosis.worst_stretch(curves.frames["frame"], curves.frames["psnr"])
    if last >= len(video.prediction):
        return None
    return stretch_strip(video, first, last)


def _numbers(run: RunFolder) -> list[tuple[str, float, float]]:
    """(name, PSNR, SSIM) of each measurement of the evaluation."""
    if run.summary is None:
        return []
    rows = [
        ("rollout (own predictions fed back)", run.number("psnr"), run.number("ssim")),
        ("one step (true previous frame fed)", run.number("psnr_one_step"), run.number("ssim_one_step")),
        ("one step, z from the posterior", run.number("psnr_posterior"), math.nan),
        ("repeat the last given frame", run.trivial("repeat_last_past"), math.nan),
        ("mean frame of the clip (uses the truth)", run.trivial("mean_frame"), math.nan),
    ]
    return [row for row in rows if math.isfinite(row[1])]


def _commands(run: RunFolder) -> list[str]:
    """The run's own command, and those that reproduce its numbers and pictures."""
    versions = run.info.get("versions")
    known = versions if isinstance(versions, dict) else {}
    known_versions = [f"{name} {known[name]}" for name in ("cvae", "python", "torch") if name in known]
    known_versions += [f"commit {run.info['git']}"] if run.info.get("git") else []
    return [
        *([f"# {', '.join(known_versions)}"] if known_versions else []),
        str(run.info.get("command", f"cvae train --config {run.path}/config.yaml")),
        f"cvae train --config {run.path}/config.yaml      # the same settings, resolved",
        f"cvae validate {run.path} --split {run.split}",
        f"cvae plot all {run.path}",
        f"cvae export-gif {run.path}",
    ]
