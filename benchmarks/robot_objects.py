"""Where a robot model is wrong on the built-in set: on pushed objects, or elsewhere?

    python benchmarks/robot_objects.py RUN [RUN ...]
    python benchmarks/robot_objects.py RUN --strip before-after.png      # what it looks like, one row per run

The built-in world is drawn a second time with objects that stay where they are in the last given frame. The
arm is the same. Pixels in which the two drawings differ belong to pushed objects: the place that one has
left, the place where it is now, and its shadow. What the arm hides does not count. PSNR is computed from the
mean squared error over all pixels of a kind, of all clips and frames of the split.

Two drawings are scored as if they were predictions: a perfect arm over objects that nobody pushes, and the
mean of 16 other futures of the same clips. Objects slip at random when they are touched, so this mean is
about the best that a model can do.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tools

if TYPE_CHECKING:
    from cvaecli.synthetic.robot.world import World

THRESHOLD = 0.04
"""Difference of the two drawings, in units of the data range, from which a pixel counts."""
FUTURES = 16


def main() -> None:
    options = _arguments()
    from cvaecli.run import find_run

    print(f"| {options.split} split | pixels of pushed objects | all other pixels | all |\n|---|---|---|---|")
    rows: dict[str, np.ndarray] = {}
    moved = None
    for run in options.runs:
        config, true, predicted = tools.truth_and_predictions(run, [], options.split)
        P, truth = config.data.n_past, true / 255
        if moved is None:
            world = _World(options.split, truth)
            still, mean = world.still(P)[:, P:], world.mean()[:, P:]
            moved = np.abs(still - truth[:, P:]).max(-1) > THRESHOLD
            print(f"| share of the pixels | {moved.mean():.1%} | {1 - moved.mean():.1%} | 100 % |")
            print(_row("perfect arm, objects stay", still, truth[:, P:], moved))
            print(_row(f"mean of {FUTURES} other futures", mean, truth[:, P:], moved))
        frames = rows[name := find_run(run).path.name] = predicted[:, P:] / 255
        print(_row(name, frames, truth[:, P:], moved))
    if options.strip:
        _strip(options.strip, P, truth[:, P:], rows, moved)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs on the built-in robot set, of one size")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    parser.add_argument("--strip", type=Path, help="write a picture: truth, then one row per run")
    return parser.parse_args()


class _World:
    """The built-in world of a split, to be drawn otherwise than in the data set.

    Args:
        truth: ``[N, T, H, W, 3]`` in 0..1; drawn again here, so that a change of the set cannot go unseen.
    """

    def __init__(self, split: str, truth: np.ndarray) -> None:
        from cvaecli.synthetic.robot.tabletop import enlarged_table

        self._clips, self._frames, H, W, _ = truth.shape
        self._split = ("train", "val", "test").index(split)
        self._ground, self._scale = enlarged_table(H, W)
        self._true = self._simulate(0)
        if not np.allclose(self._draw(self._true), truth):
            raise SystemExit("the run's data are not the built-in set with seed 0")

    def still(self, given: int) -> np.ndarray:
        """The clips with objects that stay where they are in frame ``given - 1``; same shape as the truth."""
        places, turns = self._true.places.copy(), self._true.turns.copy()
        places[:, given:], turns[:, given:] = places[:, given - 1 : given], turns[:, given - 1 : given]
        return self._draw(replace(self._true, places=places, turns=turns))

    def mean(self) -> np.ndarray:
        """The mean of other futures of the clips."""
        total: np.ndarray = sum(self._draw(self._simulate(variant)) for variant in range(1, FUTURES + 1))
        return total / FUTURES

    def _simulate(self, variant: int) -> World:
        from cvaecli.synthetic import robot
        from cvaecli.synthetic.robot import world

        seeds = [[0, self._split, i] for i in range(self._clips)]
        return world.simulate(seeds, robot.FRAMES, 1.0, variant)

    def _draw(self, world: World) -> np.ndarray:
        from cvaecli.synthetic.robot import paint

        clips = [paint.pictures(world, i, self._ground, self._scale) for i in range(self._clips)]
        return np.moveaxis(np.stack(clips)[:, : self._frames], 2, -1) / 255


def _row(name: str, frames: np.ndarray, truth: np.ndarray, moved: np.ndarray) -> str:
    error = ((frames - truth) ** 2).mean(-1)
    psnrs = [-10 * np.log10(error[chosen].mean()) for chosen in (moved, ~moved, moved | True)]
    return f"| {name} | " + " | ".join(f"{psnr:.2f} dB" for psnr in psnrs) + " |"


def _strip(path: Path, given: int, truth: np.ndarray, rows: dict[str, np.ndarray], moved: np.ndarray) -> None:
    """The clip in which pushed objects change most pixels: every third predicted frame, one row per run."""
    from cvaecli import media
    from cvaecli.media import panels

    clip, times = int(moved.sum((1, 2, 3)).argmax()), list(range(0, truth.shape[1], 3))
    shown = {"truth": truth, **rows}
    pictures = [(part[clip, times] * 255).round().astype(np.uint8) for part in shown.values()]
    columns = [f"frame {given + t}" for t in times]
    media.save_png(path, panels.strip(pictures, list(shown), scale=4, columns=columns))


if __name__ == "__main__":
    main()
