"""Draw figures from runs' files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..config.schema import RunConfig
from ..errors import UserError
from ..reporter import Reporter
from ..run import find_run
from .loading import RUNS


def plot(
    kind: str,
    run_specs: Sequence[str | Path] = (),
    *,
    out: str | Path | None = None,
    labels: Sequence[str] | None = None,
    split: str | None = None,
    log: bool | None = None,
    sequence: int = 0,
    samples: int = 16,
    runs: Path = RUNS,
    reporter: Reporter | None = None,
) -> list[Path]:
    """Draw one kind of figure, or all; several runs make one comparison.

    A run without the files that a comparison needs is left out, with a warning to the reporter.

    Figures are drawn from the runs' files. Only the kind ``samples`` uses the models: it first predicts one
    clip ``samples`` times with each, see ``sampling.sample``.

    Args:
        kind: see ``plots.plot``.
        run_specs: see ``run.find_run``; the newest run when empty.
        out, labels, split, log: see ``plots.plot``.
        sequence: for the kind ``samples``: which clip of ``split`` (test when unset).
        samples: for the kind ``samples``: how many futures, at least 2.

    Returns:
        The files written.

    Raises:
        UserError: an unknown kind, no such run, or one without the files that the figure needs.
    """
    from .. import plots

    if labels and kind == "compare":
        raise UserError(
            "--label: compare names settings by the differences of their configs", "remove --label"
        )
    specs: Sequence[str | Path | None] = run_specs or [None]
    folders = [find_run(spec, runs).path for spec in specs]
    if kind == "samples":
        from .sampling import sample

        if samples < 2:
            raise UserError(f"samples={samples}: the figure compares samples", "choose 2 or more")
        split = split or "test"
        for folder in folders:
            sample(folder, split, sequence, samples=samples, reporter=reporter)
    warn = reporter.warn if reporter else None
    return plots.plot(kind, folders, out, labels=labels or None, split=split, log=log, warn=warn)


def plot_schedule(
    kind: str, configs: Mapping[str, RunConfig], *, out: str | Path | None = None
) -> list[Path]:
    """Draw ``beta``, ``tfr`` or ``lr`` of named configs without a run; see ``plots.plot_planned``."""
    from .. import plots

    return plots.plot_planned(kind, configs, out)
