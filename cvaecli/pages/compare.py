"""Compare runs: a table for the terminal, a page, or Markdown and CSV with figures."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..evaluations import COMPARABLE
from ..files import write_bytes
from . import paired, render
from .folders import RunFolder, choose_split, find_runs, read_runs
from .paired import Difference
from .settings import Group, Setting, groups_of, question, short_names

SUFFIXES = (".html", ".md", ".csv")

WIDE = 6
"""Up to this many differing keys are columns of the table; more get their own table."""


@dataclass(frozen=True)
class Column:
    """A number of the tables: its name in ``metrics.json``, its heading, its digits."""

    name: str
    heading: str
    digits: int


COLUMNS = (
    Column("psnr", "PSNR (dB)", 2),
    Column("psnr_one_step", "one step (dB)", 2),
    Column("psnr_best_of_samples", "best sample (dB)", 2),
    Column("ssim", "SSIM", 4),
    Column("diversity", "diversity", 4),
    Column("kl", "KL (nats)", 3),
    Column("minutes", "time (min)", 1),
)


@dataclass(frozen=True)
class Comparison:
    """Runs read and grouped."""

    runs: list[RunFolder]
    groups: list[Group]
    question: str
    split: str


def compare(specs: Sequence[str | Path], split: str | None = None) -> Comparison:
    """Read and group the runs that ``specs`` mean.

    Args:
        specs: see ``folders.find_runs``.
        split: which evaluations; default: val if there is one.

    Raises:
        UserError: no runs, or a damaged file.
    """
    paths = find_runs(specs)
    split = choose_split(paths, split)
    if split != Path(split).name:
        raise UserError(f"--split {split}: not a split", "val, test or another folder under eval/")
    runs = read_runs(paths, split)
    return Comparison(runs, groups_of(runs), question(runs), split)


# ---------------------------------------------------------------- words and cells


def columns_of(group: Group) -> list[Column]:
    """The columns that hold a number; those about samples only if there are several samples."""
    several = group.protocol.get("samples", 1) != 1
    return [
        column
        for column in COLUMNS
        if any(np.isfinite(setting.numbers(column.name)).any() for setting in group.ranked)
        and (several or column.name not in ("psnr_best_of_samples", "diversity"))
    ]


def cell(setting: Setting, column: Column, with_spread: bool = True) -> str:
    """Mean over the runs, with ± sample standard deviation (n - 1) if there are several."""
    values = setting.numbers(column.name)
    if not len(values) or not np.isfinite(values).all():
        return ""
    several = with_spread and len(values) > 1
    spread = f" ± {values.std(ddof=1):.{column.digits}f}" if several else ""
    return render.fixed(float(values.mean()), column.digits) + spread


def seeds(setting: Setting) -> str:
    """The seeds that count, and the number of runs that do not."""
    text = ", ".join(str(run.seed) for run in setting.counted) or "–"
    return text + (f" ({len(setting.left_out)} not counted)" if setting.left_out else "")


def protocol_words(group: Group) -> str:
    """How the group's numbers were measured, in one sentence."""
    protocol = group.protocol
    if not protocol:
        return "These runs have no evaluation yet."
    words = [f"split {protocol.get('split', '?')}", f"{protocol['frames']} predicted frames"]
    if isinstance(protocol.get("frame_size"), list):
        words.append("frames of " + " × ".join(map(str, protocol["frame_size"])))
    given = protocol.get("n_past", "?")
    words.append(f"{given} given frame{'' if given == 1 else 's'}")
    samples = protocol.get("samples", "?")
    prior = {"sample": "drawn from the prior", "mean": "at the prior's mean"}.get(
        str(protocol.get("prior")), "?"
    )
    words.append(f"{samples} sample{'' if samples == 1 else 's'} with z {prior}")
    if protocol.get("average_flips"):
        words.append("averaged over flips")
    if protocol.get("conditions", "the clip's own") != "the clip's own":
        words.append(f"conditions: {protocol['conditions']}")
    words.append(f"data: {protocol.get('data', '?')} ({protocol.get('data_fingerprint', '?')})")
    return ", ".join(words)


_CHECKPOINTS = {"best.pt": "best.pt, the best by validation", "last.pt": "last.pt, after the last epoch"}


def measures(group: Group) -> dict[str, str]:
    """The meaning of each number of the table."""
    protocol = group.protocol
    if not protocol:
        return {}
    checkpoint = str(protocol.get("checkpoint", "?"))
    words = {
        "PSNR (dB)": f"of the rollout, where predictions are fed back: {protocol.get('psnr', '?')}",
        "one step (dB)": "the same with the true previous frame fed; the difference is drift",
        "SSIM": str(protocol.get("ssim", "?")),
        "KL (nats)": "divergence of the posterior from the prior, mean over frames",
        "checkpoint": _CHECKPOINTS.get(checkpoint, checkpoint),
    }
    if protocol.get("split") == "val" and checkpoint == "best.pt":
        words["split"] = "val chose the checkpoint, so these numbers are a little too good"
    return words


def protocol_differences(groups: Sequence[Group]) -> str:
    """Why there are several groups; empty if there is only one."""
    known = [group.protocol for group in groups if group.protocol]
    keys = [*COMPARABLE, "frames"]
    differ = [key for key in keys if len({str(protocol.get(key)) for protocol in known}) > 1]
    if not differ:
        return ""
    return (
        f"These runs were measured in {len(known)} ways (different: {', '.join(differ)}). "
        "Numbers of different groups are not comparable, so there is no common ranking."
    )


def answer(group: Group, differences: Sequence[Difference]) -> str:
    """The best setting, and whether its lead is settled."""
    ranked = group.ranked
    if not ranked:
        return "No run of this group has finished and been evaluated."
    best = ranked[0]
    n = len(best.counted)
    text = f"{best.label}: {best.mean('psnr'):.2f} dB, {'one run' if n == 1 else f'mean of {n} runs'}"
    if len(ranked) == 1:
        return f"{text}."
    against = next(d for d in differences if {d.left, d.right} == {best.label, ranked[1].label})
    return f"Highest is {text}. Against the next best: {against.sentence}"


def left_out(group: Group) -> list[RunFolder]:
    """The runs of a group whose numbers are not averaged."""
    return [run for setting in group.settings for run in setting.left_out]


def table(group: Group, narrow: bool = False) -> tuple[list[str], list[list[str]]]:
    """Headings and rows, best mean first: what differs, seeds, numbers.

    Args:
        narrow: for a terminal: the number of runs instead of their seeds, and a spread only for PSNR.
    """
    keys = group.keys if len(group.keys) <= WIDE else []
    names, columns = short_names(keys), columns_of(group)
    first = [names[key] for key in keys] or ["setting"]
    rows = [
        [
            *([setting.values[key] for key in keys] or [setting.label]),
            f"{len(setting.counted)}/{len(setting.runs)}" if narrow else seeds(setting),
            *(cell(setting, c, not narrow or c.name == "psnr") for c in columns),
        ]
        for setting in group.settings
    ]
    headings = [column.heading.partition(" (")[0] if narrow else column.heading for column in columns]
    return [*first, "runs" if narrow else "seeds", *headings], rows


def as_data(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain data, for ``--json``."""
    return {
        "question": comparison.question,
        "split": comparison.split,
        "groups": [
            {
                "protocol": group.protocol,
                "settings": [_setting_data(setting) for setting in group.settings],
                "not_counted": {run.name: run.flaw for run in left_out(group)},
                "differences": [_difference_data(d) for d in paired.between_settings(group)],
                "one_key_at_a_time": [_difference_data(d) for d in paired.one_key_at_a_time(group)],
            }
            for group in comparison.groups
        ],
    }


def _setting_data(setting: Setting) -> dict[str, Any]:
    numbers = {
        column.name: {run.name: _number(run.number(column.name)) for run in setting.counted}
        for column in COLUMNS
    }
    return {"label": setting.label, "values": setting.values, **numbers}


def _difference_data(difference: Difference) -> dict[str, Any]:
    return {
        "left": difference.left,
        "right": difference.right,
        "seeds": difference.seeds,
        "mean": _number(difference.mean),
        "margin": _number(difference.margin),
        "verdict": difference.verdict,
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


# ---------------------------------------------------------------- files


def write(comparison: Comparison, out: Path, *, with_pictures: bool = True) -> list[Path]:
    """Write the comparison.

    Args:
        out: .html, one self-contained page; .csv, one row per run; .md, Markdown with a .csv and figures (PNG
            and SVG) next to it.
        with_pictures: whether the page shows frames of the videos.

    Returns:
        The files written.

    Raises:
        UserError: another suffix, or a damaged file.
    """
    suffix = out.suffix.lower()
    render.check_suffix(suffix, SUFFIXES, out)
    if suffix == ".csv":
        return [_write(out, _csv(comparison))]
    if suffix == ".html":
        return [_write(out, _html(comparison, with_pictures))]
    return _write_markdown(comparison, out)


def _write(out: Path, content: str | bytes) -> Path:
    write_bytes(out, content.encode("utf-8") if isinstance(content, str) else content)
    return out


def _csv(comparison: Comparison) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    keys = list(dict.fromkeys(key for group in comparison.groups for key in group.keys))
    protocol = ["samples", "prior", "average_flips", "frames", "data_fingerprint"]
    numbers = [column.name for column in COLUMNS]
    writer.writerow(["group", "run", *keys, "seed", "counted", "why_not", "split", *protocol, *numbers])
    for number, group in enumerate(comparison.groups, 1):
        for setting, run in [(each, run) for each in group.settings for run in each.runs]:
            values = [run.number(name) for name in numbers]
            how = [(run.protocol | {"frames": run.frames}).get(key, "") for key in protocol]
            writer.writerow(
                [
                    *(number, run.name),
                    *(setting.values.get(key, "") for key in keys),
                    *(run.seed, "no" if run.flaw else "yes", run.flaw, run.split),
                    *how,
                    *("" if math.isnan(value) else f"{value:.8g}" for value in values),
                ]
            )
    return buffer.getvalue()


def _write_markdown(comparison: Comparison, out: Path) -> list[Path]:
    from .figures import add_legend
    from .svg import draw

    written, sections = [], []
    for number, group, figures in _drawn(comparison):
        names = {}
        for kind, figure in figures.items():
            stem = f"{out.stem}-{kind}" + (f"-{number}" if len(comparison.groups) > 1 else "")
            add_legend(figure)
            names[kind] = re.sub(r"[^\w.-]+", "_", stem) + ".png"
            for suffix in (".png", ".svg"):
                path = out.with_name(names[kind]).with_suffix(suffix)
                written.append(_write(path, draw(figure, suffix)))
        sections.append(_section(group) | {"figures": names})
    text = render.markdown("compare.md", comparison=comparison, groups=sections, **_words(comparison))
    return [_write(out, text), _write(out.with_suffix(".csv"), _csv(comparison)), *written]


def _drawn(comparison: Comparison) -> Iterator[tuple[int, Group, dict[str, Any]]]:
    """(number from 1, group, its figures)."""
    from .figures import comparison_figures

    for number, group in enumerate(comparison.groups, 1):
        differences = paired.one_key_at_a_time(group), paired.between_settings(group)
        yield number, group, comparison_figures(group, *differences)


def _section(group: Group) -> dict[str, Any]:
    """A group's values for the templates."""
    between = paired.between_settings(group)
    headings, rows = table(group)
    return {
        "protocol": protocol_words(group),
        "measures": measures(group) | _TABLE_WORDS,
        "answer": answer(group, between),
        "headings": headings,
        "rows": rows,
        "wide": len(group.keys) > WIDE,
        "group": group,
        "between": between,
        "by_key": paired.one_key_at_a_time(group),
        "left_out": left_out(group),
        "trivial": _trivial(group),
    }


_TABLE_WORDS = {
    "time (min)": "training alone, without the validation at its end",
    "±": "standard deviation over the runs of a setting (n − 1)",
}


def _trivial(group: Group) -> dict[str, float]:
    """The trivial predictors' PSNR, the same for all runs of a group."""
    run = next((run for setting in group.ranked for run in setting.counted), None)
    if run is None:
        return {}
    names = {"repeat_last_past": "repeat the last given frame", "mean_frame": "the clip's mean frame"}
    return {words: run.trivial(name) for name, words in names.items() if math.isfinite(run.trivial(name))}


def _words(comparison: Comparison) -> dict[str, str]:
    return {"rule": paired.RULE, "warning": protocol_differences(comparison.groups)}


def _html(comparison: Comparison, with_pictures: bool) -> str:
    from . import pictures
    from .figures import legend
    from .svg import inline, to_svg

    sections = []
    for number, group, figures in _drawn(comparison):
        ranked = group.ranked
        svgs = {
            name: inline(to_svg(figure), f"g{number}-{name}", f"{name} of group {number}")
            for name, figure in figures.items()
        }
        firsts = [(setting.label, setting.counted[0]) for setting in ranked if with_pictures]
        videos = [(label, pictures.video_of(run.path, run.split)) for label, run in firsts]
        strips = [(label, run.name, pictures.strip_of(run.path, run.split)) for label, run in firsts]
        sections.append(
            _section(group)
            | {
                "number": number,
                "figures": svgs,
                "sort_keys": _sort_keys(group),
                "legend": legend(group),
                "sprites": pictures.sprites([(label, v) for label, v in videos if v is not None]),
                "strips": [each for each in strips if each[2] is not None],
            }
        )
    return render.page("compare.html", comparison=comparison, groups=sections, **_words(comparison))


def _sort_keys(group: Group) -> list[list[str]]:
    """The sort key of each cell in the page: its number, if it has one, else its text."""
    _, rows = table(group)
    columns = columns_of(group)
    keys = []
    for setting, row in zip(group.settings, rows, strict=True):
        means = [setting.mean(column.name) for column in columns]
        numbers = ["" if math.isnan(mean) else f"{mean:.6g}" for mean in means]
        keys.append(list(itertools.chain(row[: len(row) - len(columns)], numbers)))
    return keys
