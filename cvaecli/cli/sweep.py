"""``cvae sweep``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import AsJson, Debug, Quiet, split_arguments, terminal
from .console import Terminal

if TYPE_CHECKING:
    from ..api.sweep import Progress


def sweep(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE[,VALUE]...]...",
            help="A key with several values is an axis of the grid. KEY+KEY=A+B,C+D changes keys together. "
            "With --search also KEY=LOW..HIGH.",
        ),
    ] = None,
    config: Annotated[
        str,
        typer.Option(
            "--config", "-c", help="A YAML file, or the name of a built-in config such as cyclical."
        ),
    ] = "quickstart",
    name: Annotated[
        str | None, typer.Option(help="The sweep's folder under runs/; CONFIG-sweep by default.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Runs at the same time, each with a GPU or a share of the cores.")
    ] = 1,
    search: Annotated[
        bool, typer.Option("--search", help="Search instead of training a grid, and stop poor runs early.")
    ] = False,
    trials: Annotated[
        int | None, typer.Option(min=1, help="With --search: the total number of runs.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="Use an Optuna storage instead of the folder's journal.")
    ] = None,
    stale_after: Annotated[
        float,
        typer.Option(min=1, help="Seconds after which a silent worker on another machine counts as dead."),
    ] = 120,
    wait: Annotated[
        bool, typer.Option(help="Also wait for the runs of other processes, and take over from dead ones.")
    ] = True,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Train failed runs again.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="List the runs with estimates of time and memory; leave nothing behind."
        ),
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train a grid of runs, or search for the best. The same command continues a sweep, or joins a running
    one.

    Example: cvae sweep kl.schedule=cyclical,monotonic,none seed=0,1,2 --name ablation
    """
    with terminal(quiet, as_json, debug) as console:
        stray, overrides = split_arguments(arguments)
        if stray:
            raise typer.BadParameter(f"{stray[0]}: not an override; write section.key=value")
        if search != (trials is not None):
            raise typer.BadParameter("--search and --trials N go together")
        from ..api import sweep as api

        given: dict[str, Any] = {"name": name, "trials": trials, "workers": workers, "reporter": console}
        if dry_run:
            _show_estimate(console, api.estimate(config, overrides, **given))
            return
        with console.live() as live:
            outcome = api.sweep(
                config,
                overrides,
                **given,
                storage=storage,
                stale_after=stale_after,
                wait=wait,
                retry_failed=retry_failed,
                watch=_Watch(console, live, workers),
            )
        _show(console, outcome)
        if any(cell["state"] == "failed" for cell in outcome["cells"]):
            raise typer.Exit(1)


class _Watch:
    """Prints a line for each run that starts or ends, and a live table of the running ones.

    Args:
        live: replaces the title and the rows of the table.
        workers: number of runs at the same time, for the estimate of the time left.
    """

    def __init__(self, console: Terminal, live: Any, workers: int) -> None:
        self._console, self._live, self._workers = console, live, workers
        self._last_states: dict[str, str] | None = None

    def __call__(self, cells: list[Progress]) -> None:
        states = {cell.state.cell: cell.state.state for cell in cells}
        before = states if self._last_states is None else self._last_states
        if self._last_states is None and any(state != "waiting" for state in states.values()):
            self._console.note(f"continuing: {_counts(states)}")
        for cell in cells:
            if states[cell.state.cell] != before.get(cell.state.cell):
                self._report(cell)
        self._last_states = states
        left = _left(cells, self._workers)
        rows = [
            [
                _name(cell),
                cell.epoch,
                _dB(cell.psnr),
                "" if cell.seconds_left is None else _time(cell.seconds_left),
            ]
            for cell in cells
            if cell.state.state == "running"
        ]
        title = _counts(states) + (f", about {_time(left)} left" if left else "")
        self._live(title, ["running", "epoch", "PSNR dB", "left"], rows)

    def _report(self, cell: Progress) -> None:
        state = cell.state
        if state.state == "failed":
            self._console.warn(f"{_name(cell)} failed: {state.error}")
        elif state.state in ("finished", "pruned"):
            took = f"  {_time(state.seconds)}" if state.seconds else ""
            self._console.note(f"{state.state:8} {_name(cell)}  {_dB(cell.psnr)} dB{took}")
        elif state.state == "running":
            self._console.note(f"started  {_name(cell)}")
        else:
            self._console.note(f"stopped  {_name(cell)}; waiting to continue")


def _show(console: Terminal, outcome: dict[str, Any]) -> None:
    """The results, failed runs last."""
    if console.as_json:
        console.data(outcome)
        return
    cells, folder = outcome["cells"], outcome["sweep"]
    ended = [cell for cell in cells if cell["state"] != "failed"]
    if outcome["kind"] == "search":
        ended.sort(key=lambda cell: -(cell["psnr"] or 0))
    rows = [
        [
            cell["run"].rpartition("/")[2] if cell["run"] else cell["cell"],
            _dB(cell["psnr"]),
            _dB(cell["psnr_one_step"]),
            cell["state"],
        ]
        for cell in ended
    ]
    columns = ["run", "rollout dB", "one step dB", "state"]
    if all(cell["state"] == "finished" for cell in ended):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    console.table(f"{folder}: PSNR on val", columns, rows)
    for cell in cells:
        if cell["state"] == "failed":
            console.error(f"{cell['cell']}: {cell['error']}")
    console.result(f"next: cvae compare {folder}")


def _show_estimate(console: Terminal, found: dict[str, Any]) -> None:
    if console.as_json:
        console.data(found)
        return
    rows = [
        [cell["cell"], f"{cell['estimated_minutes']:.1f}", f"{cell['peak_memory_gb']:.2f}"]
        for cell in found["cells"]
    ]
    title = f"Dry run: {found['runs']} runs for {found['sweep']}; nothing is left behind"
    console.table(title, ["run", "minutes", "memory GB"], rows)
    time = _time(60 * found["estimated_minutes"])
    console.result(f"about {time} with {found['workers']} worker(s), validations not counted")


def _name(cell: Progress) -> str:
    return cell.state.run.name if cell.state.run else cell.state.cell


def _counts(states: dict[str, str]) -> str:
    values = list(states.values())
    parts = [f"{values.count('finished')} of {len(values)} finished"]
    parts += [f"{values.count(s)} {s}" for s in ("running", "pruned", "failed") if s in values]
    return ", ".join(parts)


def _left(cells: list[Progress], workers: int) -> float | None:
    """Seconds until all have ended, estimated from those that have."""
    took = [cell.state.seconds for cell in cells if cell.state.state == "finished" and cell.state.seconds]
    running = [cell.seconds_left or 0 for cell in cells if cell.state.state == "running"]
    if not took or not running:
        return None
    waiting = sum(cell.state.state == "waiting" for cell in cells)
    return (waiting * sum(took) / len(took) + sum(running)) / max(workers, len(running))


def _time(seconds: float) -> str:
    minutes = seconds / 60
    return (
        f"{seconds:.0f} s"
        if minutes < 1
        else f"{minutes:.0f} min"
        if minutes < 90
        else f"{minutes / 60:.1f} h"
    )


def _dB(value: float | None) -> str:  # noqa: N802
    return "" if value is None else f"{value:.2f}"
