"""``cvae sweep``."""

from __future__ import annotations

import importlib.util
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
            help="Several values make an axis of the grid; keys that change together: KEY+KEY=A+B,C+D. "
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
        str | None, typer.Option(help="The sweep's folder under runs/; CONFIG-sweep when left out.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Runs at once here, each with a GPU or its share of the cores.")
    ] = 1,
    search: Annotated[
        bool, typer.Option("--search", help="Search instead of a grid, and stop hopeless runs early.")
    ] = False,
    trials: Annotated[int | None, typer.Option(min=1, help="Of --search: how many runs in all.")] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="An Optuna storage instead of the folder's journal.")
    ] = None,
    stale_after: Annotated[
        float, typer.Option(min=1, help="Seconds until a silent worker on another machine counts as dead.")
    ] = 120,
    wait: Annotated[
        bool, typer.Option(help="Stay until others have finished their runs, to take over from the dead.")
    ] = True,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Train failed runs again.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs with time and memory; leave nothing behind.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train a grid of runs, or search for the best; the same command goes on, also beside others.

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
    """A line for each run that ends, and a live table of those that run.

    Args:
        live: draws a title and rows in place of the last ones.
        workers: runs at once, for the time left.
    """

    def __init__(self, console: Terminal, live: Any, workers: int) -> None:
        self._console, self._live, self._workers = console, live, workers
        self._told: dict[str, str] | None = None

    def __call__(self, cells: list[Progress]) -> None:
        states = {cell.state.cell: cell.state.state for cell in cells}
        before = states if self._told is None else self._told
        if self._told is None and any(state != "waiting" for state in states.values()):
            self._console.note(f"going on: {_counts(states)}")
        for cell in cells:
            if states[cell.state.cell] != before.get(cell.state.cell):
                self._tell(cell)
        self._told = states
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

    def _tell(self, cell: Progress) -> None:
        state = cell.state
        if state.state == "failed":
            self._console.warn(f"{_name(cell)} failed: {state.error}")
        elif state.state in ("finished", "pruned"):
            took = f"  {_time(state.seconds)}" if state.seconds else ""
            self._console.note(f"{state.state:8} {_name(cell)}  {_dB(cell.psnr)} dB{took}")
        elif state.state == "running":
            self._console.note(f"started  {_name(cell)}")
        else:
            self._console.note(f"stopped  {_name(cell)}; waits to go on")


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
            "" if cell["state"] == "finished" else cell["state"],
            _dB(cell["psnr"]),
            _dB(cell["psnr_one_step"]),
        ]
        for cell in ended
    ]
    console.table(f"{folder}: PSNR on val", ["run", "", "rollout dB", "one step dB"], rows)
    for cell in cells:
        if cell["state"] == "failed":
            console.error(f"{cell['cell']}: {cell['error']}")
    if importlib.util.find_spec("cvaecli.cli.compare"):
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
    """Seconds until all have ended, from those that have."""
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
