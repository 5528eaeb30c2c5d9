"""Settings compared over seeds, from eval/<split>/.

Runs that differ only in seed are one line of the figure and one row of the table, with their spread.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from matplotlib.figure import Figure

from ..errors import UserError
from ..files import replacing
from . import figures
from .figures import Request, Run
from .psnr import common_split, over_clips, per_frame, protocols
from .tables import AbsentError, Array

_NOT_SETTINGS = ("seed", "runtime")
"""What may differ between runs of one setting: nothing here is meant to change a result."""
_COLUMNS = {
    "psnr": ("PSNR (dB)", 2),
    "psnr_one_step": ("one step (dB)", 2),
    "psnr_per_channel": ("per channel (dB)", 2),
    "ssim": ("SSIM", 4),
    "psnr_best_of_samples": ("best sample (dB)", 2),
    "diversity": ("diversity", 4),
    "kl": ("KL (nats)", 3),
}
"""Numbers of metrics.json that the tables hold, with their headings and digits."""


class Group(NamedTuple):
    """Runs of one setting: what tells it from the others, and its runs' seeds, curves and numbers."""

    label: str
    keys: str  # of the settings that the label tells
    style: dict[str, Any]
    seeds: list[Any]
    curves: list[tuple[Array, Array]]  # (frame, dB), one a run
    numbers: list[dict[str, Any]]  # metrics.json, one a run

    def values(self, name: str) -> Array:
        """One number a run; NaN where the validation has none."""
        return np.array([np.nan if run.get(name) is None else run[name] for run in self.numbers], float)


def compare_figure(request: Request) -> Figure:
    """Above: PSNR of each setting, a dot a seed and a bar for their mean. Below: dB of each frame, the mean
    over the seeds, with a band from the lowest to the highest.

    Raises:
        AbsentError: a run has no evaluation of the split.
        UserError: a damaged file.
    """
    split = request.split or common_split(request.runs)
    groups = _groups(request.runs, split)
    tallest = 0.3 + 0.19 * len(groups)
    figure = Figure(figsize=(figures.WIDTH, 1.6 * tallest + 3.2), layout="constrained")
    parts = np.ravel(np.asarray(figure.subfigures(2, 1, height_ratios=[tallest + 0.6, 0.6 * tallest + 2.6])))
    dots, lines = (part.subplots() for part in parts)
    for row, group in enumerate(groups):
        psnr, colour = group.values("psnr"), group.style["color"]
        dots.plot(psnr, np.full(len(psnr), row), "o", color=colour, markersize=3.5, alpha=0.75)
        dots.plot([psnr.mean()] * 2, [row - 0.32, row + 0.32], "-", color=colour, linewidth=1.6)
        frames, values = group.curves[0][0], np.stack([curve for _, curve in group.curves])
        figures.line(lines, frames, values.mean(0), marker="", **group.style)
        if len(values) > 1:
            lines.fill_between(frames, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
    names = [f"{group.label}: {group.values('psnr').mean():.2f}" for group in groups]
    dots.set_yticks(range(len(groups)), names, fontsize=7.5)
    dots.set_ylim(len(groups) - 0.4, -0.6)
    dots.set_xlabel("PSNR (dB), a dot for each seed, a bar at their mean")
    lines.set_ylabel("PSNR (dB)")
    figures.x_axis(lines, "frame")
    handles = [figures.key(group.label, **group.style) for group in groups]
    parts[1].legend(handles=handles, fontsize=7.5, ncols=2, loc="outside lower center")
    tables = [per_frame(run, split) for run in request.runs]
    most = max(len(group.seeds) for group in groups)
    title = f"{protocols(request.runs, split, tables)}; up to {most} seeds a setting"
    if groups[0].keys:
        title += f"\ndifferent in {groups[0].keys}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=8)
    return figure


def write_tables(request: Request, target: Path) -> list[Path]:
    """The figure's numbers beside it: ``.md`` with a row a setting, ``.csv`` with a row a run."""
    groups = _groups(request.runs, request.split or common_split(request.runs))
    written = []
    for suffix, text in ((".md", _markdown(groups)), (".csv", _csv(groups))):
        with replacing(target.with_suffix(suffix)) as part:
            part.write_text(text, encoding="utf-8")
        written.append(target.with_suffix(suffix))
    return written


def _csv(groups: Sequence[Group]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["setting", "seed", *_COLUMNS])
    for group in groups:
        for seed, run in zip(group.seeds, group.numbers, strict=True):
            writer.writerow([group.label, seed, *("" if run.get(n) is None else run[n] for n in _COLUMNS)])
    return buffer.getvalue()


def _markdown(groups: Sequence[Group]) -> str:
    """Mean ± standard deviation over the seeds (of a sample: n - 1); columns without numbers are left out."""
    shown = [n for n in _COLUMNS if any(np.isfinite(group.values(n)).any() for group in groups)]
    lines = [
        "| " + " | ".join([groups[0].keys or "setting", "seeds", *(_COLUMNS[n][0] for n in shown)]) + " |",
        "|" + "---|" * (len(shown) + 2),
    ]
    for group in groups:
        cells = [group.label, ", ".join(map(str, group.seeds))]
        for name in shown:
            values, digits = group.values(name), _COLUMNS[name][1]
            spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.{digits}f}{spread}" if np.isfinite(values).all() else "")
        lines.append("| " + " | ".join(cells) + " |")
    trivial = [run["baselines"]["repeat_last_past"]["psnr"] for group in groups for run in group.numbers]
    if np.ptp(trivial) < 0.005:
        lines.append(f"| repeat the last given frame | | {trivial[0]:.2f} |" + " |" * (len(shown) - 1))
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- groups


def _groups(runs: Sequence[Run], split: str) -> list[Group]:
    """In the order in which their first runs were named."""
    configs = [_settings(run) for run in runs]
    together: dict[str, list[int]] = {}
    for number, config in enumerate(configs):
        key = json.dumps({k: v for k, v in config.items() if k not in _NOT_SETTINGS}, sort_keys=True)
        together.setdefault(key, []).append(number)
    keys, labels = _labels([configs[members[0]] for members in together.values()])
    groups = []
    for place, (members, label) in enumerate(zip(together.values(), labels, strict=True)):
        style = {
            "color": figures.COLOURS[place % len(figures.COLOURS)],
            "linestyle": figures.LINES[place % len(figures.LINES)],
        }
        curves = [over_clips(per_frame(runs[m], split), "psnr")[::2] for m in members]
        if len({len(frames) for frames, _ in curves}) > 1:
            names = ", ".join(runs[m].folder.name for m in members)
            raise UserError(f"{names}: evaluated on frames of different number", "validate them alike")
        seeds = [configs[m].get("seed", "") for m in members]
        numbers = [_summary(runs[m], split) for m in members]
        groups.append(Group(label or runs[members[0]].label, keys, style, seeds, curves, numbers))
    return groups


def _labels(configs: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """The keys that are not the same in all, and for each setting their values; empty where there is one."""
    flat = [dict(_leaves(config)) for config in configs]
    keys = [
        key
        for key in dict.fromkeys(k for each in flat for k in each)
        if key.split(".")[0] not in _NOT_SETTINGS
    ]
    differ = [key for key in keys if len({json.dumps(each.get(key)) for each in flat}) > 1]
    labels = [", ".join(f"{key.split('.')[-1]} {_short(each.get(key))}" for key in differ) for each in flat]
    return ", ".join(differ), labels


def _leaves(config: Mapping[str, Any], path: str = "") -> Any:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _settings(run: Run) -> dict[str, Any]:
    path = run.folder / "config.yaml"
    if not path.is_file():
        raise AbsentError(f"there is no {path}", "a comparison tells settings apart by it")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no settings")
    return content


def _summary(run: Run, split: str) -> dict[str, Any]:
    path = run.folder / "eval" / split / "metrics.json"
    if not path.is_file():
        raise AbsentError(f"there is no {path}", f"run `cvae validate {run.folder} --split {split}` first")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        float(content["psnr"]), float(content["baselines"]["repeat_last_past"]["psnr"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: is damaged ({error!r})", f"run `cvae validate {run.folder} --split {split}` again"
        ) from error
    return dict(content)
