"""Draw one figure of run folders into a file, or every figure that their files allow."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from ..config.schema import RunConfig
from ..errors import UserError
from ..files import replacing
from ..media import write as write_video
from ..tables import AbsentError
from . import style
from .kinds import KINDS, PLANNED, drawer
from .runs import Request, Run, make_runs

FORMATS = (".png", ".pdf", ".svg")


def plot(
    kind: str,
    runs: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    labels: Sequence[str] | None = None,
    split: str | None = None,
    log: bool | None = None,
    warn: Callable[[str], None] | None = None,
) -> list[Path]:
    """Draw one figure, or with ``kind="all"`` every figure that the files allow.

    ``kinds.KINDS`` lists the kinds. The function that draws each, ``<kind>_figure``, describes what it shows.

    Args:
        kind: one of ``KINDS``, or ``all``.
        runs: run folders; several make one comparison figure. A run that lacks the file is left out.
        out: .png (300 dpi), .pdf or .svg, for ``grid`` also .gif; or a folder. Default:
            ``RUN/plots/KIND.png``, for several runs ``plots/KIND-A-vs-B.png`` next to the first run.
        labels: one per run. Default: the folder's name; in comparisons also how the runs differ.
        split: which evaluation; default: val, or the split that most runs were evaluated on.
        log: logarithmic y axis of ``loss``, ``kl``, ``lr`` and ``training``; default: if the values span a
            factor of 10.
        warn: receives one line for each run that is left out.

    Returns:
        The files written, each moved into place when complete; ``compare`` writes a .md and a .csv as well.

    Raises:
        UserError: unknown kind or suffix, or a damaged file (with its line number).
        AbsentError: no run has the files.
    """
    check_kind(kind)
    warned: set[str] = set()

    def warn_once(text: str) -> None:
        if warn is not None and text not in warned:
            warned.add(text)
            warn(text)

    request = Request(make_runs(runs, labels), split, log, warn_once)
    if kind != "all":
        return _draw(kind, request, _target(kind, request.runs, out))
    if out is not None and Path(out).suffix and not Path(out).is_dir():
        raise UserError(f"{out}: `all` makes several figures", "give a folder")
    paths, absent = [], []
    for each in KINDS:
        if each == "compare" and not request.comparison:
            continue
        try:
            paths += _draw(each, request, _target(each, request.runs, out))
        except AbsentError as error:
            absent.append(error)
    if not paths:
        raise absent[0]
    return paths


def plot_planned(kind: str, configs: Mapping[str, RunConfig], out: str | Path | None = None) -> list[Path]:
    """Draw a schedule of configs that need not have been run.

    Args:
        kind: one of ``PLANNED``.
        configs: by their names in the figure.
        out: see ``plot``; default: ``runs/plots/KIND-NAME.png``.

    Raises:
        UserError: a kind that needs a run, or ``tfr`` for a model without teacher forcing.
    """
    from .schedules import NOMINAL_STEPS, Plan, planned_figure

    check_kind(kind)
    if kind not in PLANNED:
        raise UserError(f"`plot {kind}` needs a run", f"a config alone has {', '.join(PLANNED)}")
    nominal = [name for name, config in configs.items() if config.train.steps_per_epoch is None]
    title = f"{', '.join(nominal)}: an epoch is drawn as {NOMINAL_STEPS} steps" if nominal else ""
    if len(configs) == 1:
        title = f"{next(iter(configs))}\n{title}".strip()
    plans = {name: Plan.of(config) for name, config in configs.items()}
    stem = "-vs-".join(re.sub(r"[^\w.-]+", "_", name) for name in configs)
    target = _path(out, Path("runs/plots"), f"{kind}-{stem}")
    return [save(lambda: planned_figure(kind, plans, title), target)]


def check_kind(kind: str) -> None:
    """Raise ``UserError`` if there is no such kind."""
    if kind not in (*KINDS, "all"):
        raise UserError(f"unknown plot {kind!r}", f"one of {', '.join((*KINDS, 'all'))}")


def save(draw: Callable[[], Figure], target: Path) -> Path:
    """Draw a figure in this package's style into a file."""
    buffer = io.BytesIO()
    with mpl.rc_context(style.RC):
        draw().savefig(buffer, format=target.suffix[1:].lower(), dpi=300)
    with replacing(target) as part:
        part.write_bytes(buffer.getvalue())
    return target


def _draw(kind: str, request: Request, target: Path) -> list[Path]:
    if target.suffix.lower() == ".gif":
        from .grid import GIF_FPS, animation

        write_video(animation(request), target, fps=GIF_FPS)
        return [target]
    path = save(lambda: drawer(kind)(request), target)
    if kind != "compare":
        return [path]
    from .compare import write_tables

    return [path, *write_tables(request, path)]


def _target(kind: str, runs: Sequence[Run], out: str | Path | None) -> Path:
    name = kind
    if len(runs) > 1:
        names = [re.sub(r"[^\w.-]+", "_", run.folder.resolve().name) for run in runs]
        name += f"-{names[0]}-vs-" + (names[1] if len(runs) == 2 else f"{len(runs) - 1}-others")
    home = runs[0].folder if len(runs) == 1 else runs[0].folder.parent
    formats = (*FORMATS, ".gif") if kind == "grid" else FORMATS
    return _path(out, home / "plots", name, formats)


def _path(out: str | Path | None, folder: Path, name: str, formats: Sequence[str] = FORMATS) -> Path:
    if out is None:
        return folder / f"{name}.png"
    path = Path(out)
    if path.is_dir() or not path.suffix:
        return path / f"{name}.png"
    if path.suffix.lower() not in formats:
        raise UserError(
            f"{path}: unknown suffix {path.suffix!r}", f"one of {', '.join(formats)}, or a folder"
        )
    return path
