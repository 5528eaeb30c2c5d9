"""``cvae data``: ``synth`` and ``check`` are here, ``import`` and ``preview`` in files of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..data.kinds import DEFAULT, KINDS, Kind
from ..errors import UserError
from . import import_film, preview
from .common import AsJson, Debug, Quiet, terminal

if TYPE_CHECKING:
    KindName = str
else:
    KindName = Literal[tuple(KINDS)]  # Typer lists and checks these; mypy does not support a computed Literal
Layout = Literal["processed", "tfrecord"]

app = typer.Typer(
    help="Import a film, look at a data set, check it, or write the built-in one.", no_args_is_help=True
)
app.command("import")(import_film.import_film)
app.command()(preview.preview)


def _usual(value: Callable[[Kind], object]) -> str:
    """A default for help texts: ``(dance: 32, robot: 64)``, or ``(64)`` if all kinds agree."""
    values = {name: value(kind) for name, kind in KINDS.items()}
    if len(set(values.values())) == 1:
        return f"({values[DEFAULT]})"
    return f"({', '.join(f'{name}: {each}' for name, each in values.items())})"


HEIGHT, WIDTH = _usual(lambda kind: kind.height), _usual(lambda kind: kind.width)
FRAMES = _usual(lambda kind: kind.built_in.frames)
TRAIN = _usual(lambda kind: kind.built_in.clips["train"])
TEST = _usual(lambda kind: kind.built_in.clips["test"])


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="Folder to write; must be empty or not exist.")],
    kind: Annotated[
        KindName, typer.Option(help="dance: a dancer in a room; robot: an arm that pushes objects.")
    ] = DEFAULT,
    layout: Annotated[
        Layout | None, typer.Option(help="Robot only: folders of PNG and CSV, or TFRecords. (processed)")
    ] = None,
    height: Annotated[
        int | None, typer.Option(min=16, max=1024, help=f"Frame height in pixels. {HEIGHT}")
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=16, max=1024, help=f"Frame width in pixels. {WIDTH}")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the motions.")] = 0,
    frames: Annotated[int | None, typer.Option(min=2, help=f"Frames of each clip. {FRAMES}")] = None,
    train_clips: Annotated[int | None, typer.Option(min=1, help=f"Clips in train. {TRAIN}")] = None,
    test_clips: Annotated[
        int | None, typer.Option(min=1, help=f"Clips in test; a robot set has the same number in val. {TEST}")
    ] = None,
    noise: Annotated[
        float | None, typer.Option(min=0, help="Robot only: scale of the random slip of objects. (1)")
    ] = None,
    stray: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Robot only: standard deviation of the arm's error in x and in y, in table widths. (0)",
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write the built-in synthetic set to disk."""
    with terminal(quiet, as_json, debug) as console:
        from importlib import import_module

        built_in = KINDS[kind].built_in
        own = {"layout": layout, "noise": noise, "stray": stray}
        foreign = [name for name in own if own[name] is not None and name not in built_in.options]
        if foreign:
            fitting = [name for name, other in KINDS.items() if set(foreign) <= set(other.built_in.options)]
            raise UserError(
                f"{', '.join(f'--{name}' for name in foreign)}: not an option of a {kind} set",
                f"add --kind {' or '.join(fitting)}",
            )
        sizes = {"height": height or KINDS[kind].height, "width": width or KINDS[kind].width}
        counts = {"frames": frames, "train": train_clips, "test": test_clips}
        given = {name: value for name, value in {**counts, **own}.items() if value is not None}
        import_module(built_in.module).write(out, **sizes, seed=seed, **given)
        console.written([out])


@app.command()
def check(
    root: Annotated[Path, typer.Argument(help="Folder of the data set.")],
    kind: Annotated[
        KindName | None, typer.Option(help="Kind of the data set; recognised from the files by default.")
    ] = None,
    height: Annotated[
        int | None, typer.Option(min=8, max=4096, help=f"Frame height you will train on. {HEIGHT}")
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=8, max=4096, help=f"Frame width you will train on. {WIDTH}")
    ] = None,
    cuts: Annotated[str, typer.Option(help="auto or none, like data.cuts.")] = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Read a whole data set and report every fault at once, one line each. Exits with status 2 if there are
    any."""
    with terminal(quiet, as_json, debug) as console:
        from ..data import loading as data

        chosen = kind or data.kind_of(root) or DEFAULT
        if kind is None and chosen != DEFAULT:
            console.note(f"{root} looks like a {chosen} set and is checked as one (--kind {chosen})")
        with console.task(f"Reading {root}") as advance:
            report = data.check(root, kind=chosen, height=height, width=width, cuts=cuts, progress=advance)
        if as_json:
            console.data({"faults": report.faults, "warnings": report.warnings, "summary": report.summary})
        else:
            for kind_of_line, lines in (("fault", report.faults), ("warning", report.warnings)):
                if lines and console.out.is_terminal:
                    rows = [_cells(line) for line in lines]
                    console.table(f"{kind_of_line}s", ["where", kind_of_line, "remedy"], rows, text=True)
                else:
                    for line in lines:
                        console.result(f"{kind_of_line}: {line}")
            for line in report.summary:
                console.result(line)
            seen = "; see the warnings above" if report.warnings else ""
            usable = f"no faults: the data set can be used{seen}"
            console.result("the data set cannot be used until this is corrected" if report.faults else usable)
        if report.faults:
            raise typer.Exit(2)


def _cells(line: str) -> list[str]:
    """A line ``where: what; remedy`` as the cells of a table. A warning may have no remedy."""
    where, _, rest = line.partition(": ")
    what, found, remedy = rest.rpartition("; ")
    return [where, what, remedy] if found else [where, rest, ""]
