"""``cvae data import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .common import AsJson, Debug, Quiet, terminal

DETECTION, TAKING, DRAWING = "Detector", "What to take", "Labels"


def import_film(
    film: Annotated[
        Path,
        typer.Argument(metavar="FILM", help="A video, a GIF, or a folder of pictures.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; must be empty or not exist.")],
    labels: Annotated[
        str,
        typer.Option(
            metavar="person|edges|foreground|PATH",
            help="person: found by torchvision's Keypoint R-CNN. edges: of every frame. foreground: what "
            "moves before a still camera. PATH: keypoints (OpenPose's folder, COCO .json, DeepLabCut's or a "
            "plain .csv).",
            rich_help_panel=DRAWING,
        ),
    ] = "person",
    skeleton: Annotated[
        str | None,
        typer.Option(
            metavar="person|points|FILE",
            help="How points are joined: person, points (a dot each), or a YAML file. By default the points' "
            "names decide.",
            rich_help_panel=DRAWING,
        ),
    ] = None,
    person: Annotated[
        str,
        typer.Option(
            metavar="all|largest|NAME",
            help="Whom to draw; a name or number as in the keypoint file.",
            rich_help_panel=DRAWING,
        ),
    ] = "all",
    keypoint_size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH",
            help="Size of the pictures in which the keypoints were found, if not the film's. 1x1: shares.",
            rich_help_panel=DRAWING,
        ),
    ] = None,
    start: Annotated[
        str,
        typer.Option(
            "--from", metavar="TIME", help="Where to begin: seconds or H:MM:SS.", rich_help_panel=TAKING
        ),
    ] = "0",
    stop: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="TIME", help="Where to end; the film's end by default.", rich_help_panel=TAKING
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            help="Frames a second; as in the film by default. For a folder, the rate of its pictures (25).",
            rich_help_panel=TAKING,
        ),
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option(
            metavar="WxH+X+Y", help="Part of the picture, in pixels of the film.", rich_help_panel=TAKING
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH",
            help="Size of the frames in pixels. By default the longer side has 64 and the proportions stay.",
            rich_help_panel=TAKING,
        ),
    ] = None,
    val: Annotated[
        float,
        typer.Option(help="Share of the frames, at the end, for validation.", rich_help_panel=TAKING),
    ] = 0.15,
    cuts: Annotated[
        Literal["auto", "none"],
        typer.Option(
            help="auto: look for cuts. none: train and val are one clip each.", rich_help_panel=TAKING
        ),
    ] = "auto",
    weights: Annotated[
        Path | None,
        typer.Option(
            help="File with the detector's weights; downloaded once by default.", rich_help_panel=DETECTION
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, ...; a GPU if there is one, by default.", rich_help_panel=DETECTION),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make a data set of your own film. An import that was interrupted goes on with the same command."""
    with terminal(quiet, as_json, debug) as console:
        from ..importing import options as given
        from ..importing.importer import import_film as run

        options = given.Options(
            labels=labels,
            skeleton=skeleton,
            person=person,
            start=given.seconds(start, "--from"),
            stop=None if stop is None else given.seconds(stop, "--to"),
            fps=fps,
            crop=None if crop is None else given.crop(crop),
            size=None if size is None else given.size(size, "--size"),
            val=val,
            cuts=cuts == "auto",
            keypoint_size=None if keypoint_size is None else given.size(keypoint_size, "--keypoint-size"),
            weights=weights,
            device=device,
        )
        report = run(film, out, options, console)
        for line in report.warnings:
            console.warn(line)
        if as_json:
            console.data({"written": [str(out)], "warnings": report.warnings, "summary": report.summary})
        else:
            for line in report.summary:
                console.result(line)
