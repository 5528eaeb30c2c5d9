"""The terminal: progress bars, tables, errors. The only file that imports rich.

Progress, notes and warnings go to stderr, results to stdout. A terminal shows live bars and one permanent
line per epoch; a pipe or a file gets plain lines only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ..reporter import Advance

if TYPE_CHECKING:
    from ..engine.events import EpochEvent, StepEvent

PLAIN_EVERY = 30.0
"""Seconds between two plain progress lines within an epoch, if there is no terminal."""


class _Bars(Progress):
    """Progress bars above a line of values, which is cut to the width of the terminal."""

    values = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """See ``Progress``."""
        yield from super().get_renderables()
        if self.values:
            yield Text.from_markup(self.values, overflow="ellipsis")


class Terminal:
    """A ``Reporter`` that writes to a terminal or a pipe.

    Args:
        quiet: print no progress and no notes, only warnings and errors.
        as_json: print results as one JSON object on stdout instead of tables.
        who: shown before warnings and errors if several processes write to one terminal.

    Attributes:
        source: the data set that the command used, once it is loaded.
    """

    def __init__(self, quiet: bool = False, as_json: bool = False, who: str = "") -> None:
        self.quiet, self.as_json, self._who = quiet, as_json, who
        self.out, self.err = Console(highlight=False), Console(stderr=True, highlight=False)
        self._bars: _Bars | None = None
        self._epochs = self._steps = TaskID(0)
        self._validation: TaskID | None = None
        self._shown: dict[str, str] = {}
        self._last_line = 0.0
        self.source: str | None = None

    # --- lines ------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """See ``Reporter``."""
        if not self.quiet:
            self.err.print(f"[dim]{escape(text)}[/]", soft_wrap=True)

    def data_source(self, source: str) -> None:
        """See ``Reporter``."""
        self.source = source
        self.note(f"data: {source}")

    def warn(self, text: str) -> None:
        """See ``Reporter``."""
        self.err.print(f"[yellow]warning:[/] {self._who}{escape(text)}", soft_wrap=True)

    def error(self, message: str, hint: str = "") -> None:
        """Print an error in one line: what is wrong, and what to do."""
        tail = f" [dim]({escape(hint)})[/]" if hint else ""
        self.err.print(f"[bold red]error:[/] {self._who}{escape(message)}{tail}", soft_wrap=True)

    def result(self, text: str) -> None:
        """Print a line of the result."""
        self.out.print(escape(text), soft_wrap=True)

    def data(self, values: Mapping[str, Any]) -> None:
        """Print one JSON object on stdout."""
        self.out.print_json(json.dumps(values), indent=2)

    def written(self, paths: Iterable[Path], **more: Any) -> None:
        """Print the files that a command wrote; ``more`` goes into the JSON object."""
        if self.as_json:
            self.data({"written": [str(path) for path in paths], **more})
        else:
            for path in paths:
                self.result(str(path))

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], text: bool = False
    ) -> None:
        """Print a table of results on stdout. All columns but the first are right-aligned, unless they hold
        ``text``."""
        self.out.print(
            f"[bold]{escape(title)}[/]", soft_wrap=True
        )  # rich cuts a table's own title to its width
        table = Table()
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if text or number == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row))
        self.out.print(table)

    # --- bars -------------------------------------------------------------------------------------

    @contextmanager
    def task(self, description: str) -> Iterator[Advance]:
        """See ``Reporter``."""
        if self.quiet or not self.err.is_terminal:
            yield lambda done, total: None
            return
        with self._progress() as bars:
            task = bars.add_task(description, total=None)

            def advance(done: int, total: int) -> None:
                bars.update(task, completed=done, total=total)

            yield advance

    @contextmanager
    def live(self) -> Iterator[Callable[[str, Sequence[str], Sequence[Sequence[str]]], None]]:
        """A table on stderr for the duration of the context: ``show(title, columns, rows)``
        redraws it.

        Nothing is drawn if there is no terminal.
        """
        if self.quiet or not self.err.is_terminal:
            yield lambda title, columns, rows: None
            return
        screen = Live(console=self.err, transient=True, auto_refresh=False)

        def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
            table = Table(title=escape(title), title_justify="left", title_style="bold", box=None)
            for number, column in enumerate(columns):
                table.add_column(column, justify="left" if number == 0 else "right", no_wrap=number > 0)
            for row in rows:
                table.add_row(*map(escape, row))
            screen.start()  # not earlier: the bar of a task may be live until now
            screen.update(table, refresh=True)

        try:
            yield show
        finally:
            screen.stop()

    def _progress(self) -> _Bars:
        return _Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(compact=True),
            console=self.err,
            transient=True,
        )

    @contextmanager
    def training(self, epochs: int) -> Iterator[None]:
        """See ``Reporter``."""
        self._epoch_count = epochs
        if self.quiet or not self.err.is_terminal:
            yield
            return
        with self._progress() as bars:
            self._bars = bars
            self._epochs = bars.add_task("[bold]epochs", total=epochs)
            self._steps = bars.add_task("steps ", total=None)
            try:
                yield
            finally:
                self._bars = None

    def step(self, event: StepEvent) -> None:
        """See ``Reporter``."""
        if event.terms is not None:
            shown = {"loss": f"{event.terms['loss']:.4f}", "recon": f"{event.terms['recon']:.4f}"}
            shown["kl"] = f"{event.terms['kl']:.2f}"
            if event.frames_per_s is not None:
                shown["frames/s"] = f"{event.frames_per_s:.0f}"
            self._shown = shown
        live = {"beta": f"{event.beta:.3f}", "tfr": f"{event.tfr:.2f} {_coin(event.forced)}"}
        if self._bars is not None:
            parts = [f"{key} [cyan]{self._shown[key]}[/]" for key in ("loss", "recon", "kl") if self._shown]
            parts += [f"{key} [magenta]{value}[/]" for key, value in live.items()]
            if "frames/s" in self._shown:
                parts.append(f"{self._shown['frames/s']} frames/s")
            self._bars.values = "  ".join(parts)
            done = event.epoch + event.step_in_epoch / event.steps_in_epoch
            self._bars.update(self._epochs, completed=done)
            if event.step_in_epoch == 1:
                self._bars.reset(self._steps)  # otherwise a full bar keeps its time and its ETA of 0
            self._bars.update(self._steps, completed=event.step_in_epoch, total=event.steps_in_epoch)
        elif not self.quiet and event.terms is not None and time.monotonic() - self._last_line > PLAIN_EVERY:
            self._last_line = time.monotonic()
            values = "  ".join(f"{key} {value}" for key, value in {**self._shown, **live}.items())
            self.note(f"epoch {event.epoch} step {event.step_in_epoch}/{event.steps_in_epoch}  {values}")

    def validating(self, done: int, total: int) -> None:
        """See ``Reporter``."""
        if self._bars is None:
            return
        if self._validation is None:
            self._validation = self._bars.add_task("validating", total=total)
        self._bars.update(self._validation, completed=done, total=total)
        if done >= total:
            self._bars.remove_task(self._validation)
            self._validation = None

    def epoch(self, event: EpochEvent) -> None:
        """See ``Reporter``."""
        self._last_line = time.monotonic()
        if self.quiet:
            return
        row = event.row
        parts = [
            f"epoch {event.epoch:>3} ({event.epoch + 1}/{self._epoch_count})"
            + ("" if event.complete else " (cut short)"),
            f"loss {row['train/loss']:.4f}",
            f"recon {row['train/recon']:.4f}",
            f"kl {row['train/kl']:.2f}",
            f"beta {row['beta']:.3f}",
            f"tfr {row['tfr']:.2f} {_coin(float(row['forced'] or 0))}",
        ]
        if event.evaluation is not None:
            parts.append(f"val {row['val/psnr']:.2f} dB (one step {row['val/psnr_one_step']:.2f})")
        if event.best:
            parts.append("best")
        self.err.print(escape("  ".join(parts)), soft_wrap=True)


def _coin(forced: float) -> str:
    """The outcome of the teacher-forcing coin, in words."""
    return "forced" if forced == 1 else "free" if forced == 0 else f"forced {forced:.0%}"
