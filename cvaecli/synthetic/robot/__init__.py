"""The built-in robot set: an arm that pushes textured objects on a table.

It needs no data of your own. Pictures are drawn, not recorded, so one seed gives the same
ones on every machine. The condition is that of BAIR robot pushing: the action (dx, dy, dz, gripper) and the
end-effector position (x, y, z). The arm follows them exactly, unless straying is switched on. Objects are
pushed with contact and friction, and slip at random when they are first touched; see `world`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from cvaecli.data.clip import Clip
from cvaecli.data.kinds import KINDS
from cvaecli.data.robot import tfrecord
from cvaecli.data.robot.condition import shifted_condition
from cvaecli.errors import UserError
from cvaecli.files import replacing
from cvaecli.synthetic.robot import paint, world
from cvaecli.synthetic.robot.tabletop import enlarged_table

Layout = Literal["processed", "tfrecord"]
Floats = npt.NDArray[np.float32]

USUAL = KINDS["robot"]
FRAMES, CLIPS = USUAL.built_in.frames, USUAL.built_in.clips
BATCH = 64
"""Number of trajectories that are simulated together."""
PER_FILE = 256
"""Number of trajectories in a record file, as in BAIR."""


def generate(
    height: int = USUAL.height,
    width: int = USUAL.width,
    *,
    seed: int = 0,
    frames: int = FRAMES,
    train: int = CLIPS["train"],
    val: int | None = None,
    test: int = CLIPS["test"],
    noise: float = 1.0,
    variant: int = 0,
    stray: float = 0.0,
) -> dict[str, list[Clip]]:
    """Draw the whole set.

    Args:
        height, width: picture size in pixels, each at least 16. The table is square and is stretched.
        seed: seeds starts, actions and slips; table and arm are always the same.
        frames: number of frames per trajectory, at least 2.
        train, val, test: number of trajectories in these splits, each at least 1; None: as many in val as
            in test.
        noise: factor on the objects' slips. With noise 0 and stray 0, start and actions determine
            everything. Starts and actions do not depend on it.
        variant: another number gives different slips and errors of the arm, that is, another future for the
            same starts and actions.
        stray: standard deviation of the arm's error in x and in y, in table widths. Actions and positions
            then say where the arm was sent, not where it is.

    Returns:
        Splits ``train``, ``val`` and ``test``. Clips are named ``train/0`` and so on; frames are uint8
        ``[frames, 3, height, width]``, the condition float32 ``[frames, 7]``: action and position of
        the previous frame, row 0 zeros.

    Raises:
        UserError: an argument is out of range.
    """
    counts = {"train": train, "val": test if val is None else val, "test": test}
    drawn = _draw(height, width, seed, frames, counts, noise, variant, stray)
    return {
        split: [
            Clip(f"{split}/{i}", pixels, shifted_condition(actions, positions))
            for i, (pixels, actions, positions) in enumerate(items)
        ]
        for split, items in drawn.items()
    }


Item = tuple[npt.NDArray[np.uint8], Floats, Floats]
"""Frames [T, 3, H, W], actions [T, 4] and positions [T, 3] of a trajectory."""


def _draw(
    height: int,
    width: int,
    seed: int,
    frames: int,
    counts: dict[str, int],
    noise: float,
    variant: int,
    stray: float,
) -> dict[str, list[Item]]:
    for name, value, least in (
        ("height", height, 16),
        ("width", width, 16),
        ("frames", frames, 2),
        *((split, count, 1) for split, count in counts.items()),
        ("noise", noise, 0),
        ("variant", variant, 0),
        ("stray", stray, 0),
    ):
        if not value >= least:
            raise UserError(f"{name} is {value}", f"the synthetic set needs at least {least}")
    ground, scale = enlarged_table(height, width)
    splits: dict[str, list[Item]] = {}
    for number, (split, count) in enumerate(counts.items()):
        items = splits[split] = []
        for start in range(0, count, BATCH):
            seeds = [[seed, number, i] for i in range(start, min(start + BATCH, count))]
            made = world.simulate(seeds, frames, noise, variant, stray)
            for i in range(len(seeds)):
                pixels = paint.pictures(made, i, ground, scale)
                items.append(
                    (pixels, made.actions[i].astype(np.float32), made.positions[i].astype(np.float32))
                )
    return splits


def write(
    root: Path,
    height: int = USUAL.height,
    width: int = USUAL.width,
    *,
    layout: Layout = "processed",
    seed: int = 0,
    frames: int = FRAMES,
    train: int = CLIPS["train"],
    val: int | None = None,
    test: int = CLIPS["test"],
    noise: float = 1.0,
    variant: int = 0,
    stray: float = 0.0,
) -> None:
    """Write the set as a folder in a robot layout; other arguments as in ``generate``.

    ``processed``: ``{train,validate,test}/traj_A_to_B.tfrecords/N/{0,1,...}.png`` with ``actions.csv``
    and ``endeffector_positions.csv``. ``tfrecord``: ``softmotion30_44k/{train,validate,test}/
    traj_A_to_B.tfrecords``; BAIR itself has no validate folder. Both are read back bit for bit.

    The folder appears only when it is complete. Its parents are created.

    Raises:
        UserError: ``root`` exists and is not an empty folder, or an argument is out of range.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} exists and is not an empty folder", "name a new folder")
    if layout == "tfrecord" and height != width:
        raise UserError(
            f"height is {height} and width is {width}", "pictures in TFRecords must be square, as BAIR's are"
        )
    counts = {"train": train, "val": test if val is None else val, "test": test}
    splits = _draw(height, width, seed, frames, counts, noise, variant, stray)
    with replacing(root, folder=True) as draft:
        for split, items in splits.items():
            folder = "validate" if split == "val" else split
            if layout == "processed":
                _write_folders(draft / folder / f"traj_0_to_{len(items) - 1}.tfrecords", items)
            else:
                _write_records(draft / "softmotion30_44k" / folder, items)


def _write_folders(group: Path, items: list[Item]) -> None:
    for number, (pixels, actions, positions) in enumerate(items):
        folder = group / str(number)
        folder.mkdir(parents=True)
        for t, image in enumerate(pixels):
            Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(folder / f"{t}.png")
        for name, values in (("actions", actions), ("endeffector_positions", positions)):
            # Nine digits distinguish every float32 from its neighbours.
            rows = [",".join(f"{value:.9g}" for value in row) for row in values]
            (folder / f"{name}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _write_records(folder: Path, items: list[Item]) -> None:
    folder.mkdir(parents=True)
    for start in range(0, len(items), PER_FILE):
        part = items[start : start + PER_FILE]
        with (folder / f"traj_{start}_to_{start + len(part) - 1}.tfrecords").open("wb") as file:
            for item in part:
                file.write(tfrecord.frame(example(*item)))


def example(pixels: npt.NDArray[np.uint8], actions: Floats, positions: Floats) -> bytes:
    """A trajectory as BAIR's ``tf.train.Example``; ``pixels`` is uint8 ``[T, 3, H, W]``."""
    features: dict[str, bytes | Floats] = {}
    for t, image in enumerate(pixels):
        features[f"{t}/action"] = actions[t]
        features[f"{t}/endeffector_pos"] = positions[t]
        features[f"{t}/image_aux1/encoded"] = image.transpose(1, 2, 0).tobytes()
    return tfrecord.build_example(features)
