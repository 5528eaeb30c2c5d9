"""Makes a data set in the dance layout from a film.

The film is read once. Each frame is cropped, resized once from full size, and appended to a file in a hidden
folder beside the target; a detector's findings too. Labels, clips and pictures are made from these. An import
that was interrupted goes on where it stopped; one that failed leaves nothing.

::

    train/, val/, test/, test_ground_truth/, clips.csv    the data set; one numbering over train and val
    frames.csv                                            where each frame comes from: frame,source,time
    keypoints.csv                                         the figures, in pixels of the frames
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..data.dance import cuts
from ..data.report import STRETCH, Report, spans
from ..errors import UserError
from ..media.panels import Frame
from ..reporter import Advance, Reporter, Silent
from .film import Film, Shot, open_film
from .keypoints import COLUMNS, rows
from .labels import Fit, Labels
from .options import Options
from .work import Work

LEAST = 3
"""The shortest clip that training and validation take, in frames."""
UNEVEN = 0.01
"""A film in which more than this share of the frames is repeated or left out has a variable frame rate."""


def import_film(path: Path, out: Path, options: Options, reporter: Reporter | None = None) -> Report:
    """Write a data set.

    Args:
        path: a film, or a folder of pictures.
        out: the folder to write; must be empty or not exist.

    Returns:
        Warnings and a summary.

    Raises:
        UserError: the film, the keypoints or an option cannot be used. Nothing is left behind.
        CvaeError: there is no ffmpeg, or the detector's weights cannot be downloaded.
    """
    reporter = reporter or Silent()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder", "name a new folder")
    film = open_film(path, options.fps)
    labels = Labels(options)
    work = Work(out, path, options)
    if work.rows:
        reporter.note(f"going on after {len(work.rows)} frames of an interrupted import")
    try:
        taken = _Reading(path, film, options, labels, work, reporter).run()
        report = _write(path, taken, options, labels, work, reporter)
        work.finish(out)
    except KeyboardInterrupt:
        reporter.warn("interrupted; the same command goes on from here")
        raise
    except BaseException:
        work.remove()
        raise
    return report


# -- reading -----------------------------------------------------------------------------------------


@dataclass
class _Taken:
    """What reading the film gave, besides the work folder's files."""

    fit: Fit
    fps: float
    warnings: list[str]


@dataclass
class _Reading:
    """Reads a film into the work folder; `run` does it."""

    path: Path
    film: Film
    options: Options
    labels: Labels
    work: Work
    reporter: Reporter
    fit: Fit | None = None  # known with the first picture
    count: int = 0  # pictures read
    whole: bool = False  # whether that was all of the film
    warnings: list[str] = field(default_factory=list)

    def run(self) -> _Taken:
        """Crop, resize and store the frames, and find the figures in them."""
        fps = self.options.fps or self.film.rate
        detector = self.labels.detector
        size = detector.batch if detector else 1
        with self.reporter.task(f"Reading {self.path.name}") as advance:
            shots = at_rate(self._shots(advance), self.film.rate, fps, self.options)
            new = itertools.islice(shots, len(self.work.rows), None)
            while batch := list(itertools.islice(new, size)):
                self._keep(batch, fps)
        if self.fit is None or not self.work.rows:
            end = "" if self.options.stop is None else f" to {self.options.stop:g}"
            raise UserError(
                f"{self.path}: no frames from {self.options.start:g}{end} s", "correct --from and --to"
            )
        self.warnings += self.labels.check_length(self.path, self.count, self.whole)
        if detector:
            self.labels.take_detected(self.work.detected, self.path)
        if self.options.fps is None:
            self._note_uneven(fps)
        return _Taken(self.fit, fps, self.warnings + self.film.warnings)

    def _shots(self, advance: Advance) -> Iterator[Shot]:
        """The film's pictures, with the time counted from the first one."""
        stop = math.inf if self.options.stop is None else self.options.stop * self.film.rate
        total = round(min(stop, self.film.count or stop)) if math.isfinite(stop) or self.film.count else 0
        begin = 0.0
        for number, time, picture in self.film.shots():
            if number == 0:
                begin = time
                self._measure(picture)
            self.count = number + 1
            advance(self.count, max(total, self.count))
            yield Shot(number, time - begin, picture)
        self.whole = True

    def _measure(self, picture: Frame) -> None:
        height, width = picture.shape[:2]
        left, top, right, bottom = self.options.box(width, height)
        w, h = self.options.frame_size(right - left, bottom - top)
        self.fit = Fit((left, top, right, bottom), (w, h))
        if abs(math.log((w / h) / ((right - left) / (bottom - top)))) > STRETCH:
            shape = f"{right - left}x{bottom - top} is stretched to {w}x{h}"
            remedy = "choose --crop and --size of the same proportions to avoid that"
            self.warnings.append(f"{self.path}: {shape}; {remedy}")
        self.labels.check_size(width, height)
        self.work.fit((w, h))

    def _keep(self, shots: list[Shot], fps: float) -> None:
        assert self.fit is not None
        before = self.work.rows[-1][0] if self.work.rows else -1
        found = {}
        if detector := self.labels.detector:
            new = {shot.number: shot.picture for shot in shots if shot.number > before}
            found = dict(zip(new, detector(list(new.values())), strict=True)) if new else {}
            if before < 0:
                count = self.film.count / self.film.rate if self.options.stop is None else self.options.stop
                left = max(0.0, count - self.options.start) * fps
                self.reporter.note(
                    f"Keypoint R-CNN on {detector.device}: {detector.seconds:.2f} s a picture, about "
                    f"{detector.seconds * left / 60:.0f} min for {left:.0f} frames"
                )
        for number, time, picture in shots:
            image = Image.fromarray(picture).crop(self.fit.box)
            # As data.images does: an antialiased triangle filter, which does not overshoot
            frame = np.asarray(image.resize(self.fit.size, Image.Resampling.BILINEAR))
            figures = found.pop(number, [])  # a picture may be repeated
            self.work.add(frame, number, time, rows(number, figures, detector.names if detector else ()))

    def _note_uneven(self, fps: float) -> None:
        """Warn of a variable frame rate: pictures were repeated or left out to make it constant."""
        numbers = [number for number, _ in self.work.rows]
        steps = [b - a for a, b in itertools.pairwise(numbers)]
        repeated, left_out = steps.count(0), sum(step - 1 for step in steps if step > 1)
        if repeated + left_out > UNEVEN * len(numbers):
            self.warnings.append(
                f"{self.path}: variable frame rate, brought to {fps:g} a second: {repeated} frames repeated, "
                f"{left_out} left out; --fps chooses another rate"
            )


def at_rate(shots: Iterator[Shot], rate: float, fps: float, options: Options) -> Iterator[Shot]:
    """The pictures that a film shows at constant distances in time, from ``start`` to ``stop``.

    Args:
        shots: all pictures in order; the first has time 0.
        rate: pictures a second of the film; the last picture is shown for this long.
        fps: pictures a second to yield.
    """
    slack = 0.25 / max(fps, rate)  # a picture that comes a little late is still the one meant
    before: Shot | None = None
    moments = (options.start + k / fps for k in itertools.count())
    due = next(moments)
    for shot in itertools.chain(shots, [None]):
        end = shot.time if shot else before.time + 1 / rate if before else 0.0
        while before and due < end - slack:
            if options.stop is not None and due >= options.stop - 1e-9:
                return
            yield before
            due = next(moments)
        before = shot


# -- writing -----------------------------------------------------------------------------------------


def _write(
    path: Path, taken: _Taken, options: Options, labels: Labels, work: Work, reporter: Reporter
) -> Report:
    """Find the clips, draw the labels, and fill ``work.result``."""
    count = len(work.rows)
    frames = work.frames(taken.fit.size)
    first_val = count - max(LEAST, round(options.val * count))
    # Frames as labels: only the pictures' jumps count
    found = cuts.find(frames, frames).jumps if options.cuts else []
    clips = list(itertools.pairwise(sorted({0, max(first_val, 0), *found, count})))
    by_split = {
        "train": [clip for clip in clips if clip[0] < first_val],
        "val": [clip for clip in clips if clip[0] >= first_val],
    }
    for split, part in by_split.items():
        if max((stop - start for start, stop in part), default=0) < LEAST:
            cut = f" with cuts at {spans(found)}" if found else ""
            fault = f"{path}: {count} frames{cut} leave no {split} clip of {LEAST} frames"
            raise UserError(fault, "take more of the film with --from and --to, or change --val or --fps")
    blank = _write_pictures(by_split, frames, labels, taken.fit, work, reporter)
    with (work.result / "clips.csv").open("w", encoding="utf-8", newline="") as file:
        named = [(split, first, stop - 1) for split, part in by_split.items() for first, stop in part]
        csv.writer(file).writerows([("split", "first", "last"), *named])
    with (work.result / "frames.csv").open("w", encoding="utf-8", newline="") as file:
        table = ((n, number, f"{time:.6f}") for n, (number, time) in enumerate(work.rows))
        csv.writer(file).writerows([("frame", "source", "time"), *table])
    width, height = taken.fit.size
    split = f"{first_val} train, {count - first_val} val, 1 test sequence"
    summary = [f"{count} frames of {width}x{height}, {taken.fps:g} a second: {split}"]
    summary += [f"cuts found before frames {spans(found)}"] if found else []
    if labels.names:
        summary.append(f"{blank} frames without a figure")
    return Report(warnings=taken.warnings, summary=summary)


def _write_pictures(
    by_split: dict[str, list[tuple[int, int]]],
    frames: npt.NDArray[np.uint8],
    labels: Labels,
    fit: Fit,
    work: Work,
    reporter: Reporter,
) -> int:
    """Frames, labels and keypoints.csv. Returns the number of frames without a figure."""
    root, blank = work.result, 0
    folders = {split: (root / split / f"{split}_img", root / split / f"{split}_label") for split in by_split}
    test = [root / "test" / name / "0" for name in ("test_img", "test_label")]
    truth = root / "test_ground_truth" / "0"
    for folder in (*folders["train"], *folders["val"], *test, truth):
        folder.mkdir(parents=True)
    first, stop = max(by_split["val"], key=lambda clip: clip[1] - clip[0])  # the test sequence
    paint = labels.painter(frames, fit)
    with (
        (root / "keypoints.csv").open("w", encoding="utf-8", newline="") as file,
        reporter.task("Writing") as advance,
    ):
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for split, (images, label_images) in folders.items():
            for n in range(by_split[split][0][0], by_split[split][-1][1]):
                label, people = paint(n, work.rows[n][0])
                blank += not people
                table.writerows(rows(n, people, labels.names))
                picture, drawn = Image.fromarray(frames[n].transpose(1, 2, 0)), Image.fromarray(label)
                picture.save(images / f"{n}.png")
                drawn.save(label_images / f"{n}.png")
                if first <= n < stop:
                    drawn.save(test[1] / f"{n - first}.png")
                    picture.save(truth / f"{n - first}.png")
                if n == first:
                    picture.save(test[0] / "0.png")
                advance(n + 1, len(frames))
    if not labels.names:
        (root / "keypoints.csv").unlink()
    return blank
