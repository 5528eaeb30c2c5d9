"""The built-in dance set: a person who moves through a lit room, with skeleton labels.

It needs no data of your own. Pictures and labels are drawn, not recorded, so one seed
gives the same ones on every machine:

- all clips have the same room, light and person; each has its own random motion;
- every frame is a function of the room and the skeleton, so the condition determines it;
- labels are sticks in OpenPose's colours on white, in front of all furniture, cut by the picture's edge.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cvaecli.data.clip import Clip
from cvaecli.data.kinds import KINDS
from cvaecli.errors import UserError
from cvaecli.files import replacing
from cvaecli.synthetic.dancer.paint import Studio, draw
from cvaecli.synthetic.dancer.person import perform

Bytes = npt.NDArray[np.uint8]

USUAL = KINDS["dance"]
FRAMES, CLIPS = USUAL.built_in.frames, USUAL.built_in.clips


SPLITS = ("train", "val", "test")
"""In the order in which their motions are seeded."""


def _planes(image: Image.Image) -> Bytes:
    return np.asarray(image).transpose(2, 0, 1)


def generate(
    height: int = USUAL.height,
    width: int = USUAL.width,
    *,
    seed: int = 0,
    frames: int = FRAMES,
    train: int = CLIPS["train"],
    val: int = CLIPS["val"],
    test: int = CLIPS["test"],
) -> dict[str, list[Clip]]:
    """Draw the whole set.

    Args:
        height, width: picture size in pixels, each at least 16. The room is made for 2:1.
        seed: seeds the motions; the room and the person are always the same.
        frames: number of frames per clip, at least 2. In clips of 300 or more the person leaves the picture
            once (a picture much wider than 2:1 may be too wide for that).
        train, val, test: number of clips in these splits, each at least 1.

    Returns:
        Splits ``train``, ``val`` and ``test``. Clips are named ``train/0`` and so on; frames and
        condition are uint8 ``[frames, 3, height, width]``. ``test`` has all true frames too.

    Raises:
        UserError: an argument is out of range.
    """
    for name, value, least in (("height", height, 16), ("width", width, 16), ("frames", frames, 2)):
        if value < least:
            raise UserError(f"{name} is {value}", f"the synthetic set needs at least {least}")
    if min(train, val, test) < 1:
        raise UserError("the synthetic set needs at least one clip in each split")
    studio = Studio(height, width)
    splits: dict[str, list[Clip]] = {}
    for split, count in zip(SPLITS, (train, val, test), strict=True):
        names = [f"{split}/{i}" for i in range(count)]
        splits[split] = [_clip(studio, name, dice(name, seed), frames) for name in names]
    return splits


def dice(name: str, seed: int) -> np.random.Generator:
    """The random numbers of the motion of a clip, which is named as ``val/0``."""
    split, _, number = name.partition("/")
    return np.random.default_rng([seed, SPLITS.index(split), int(number)])


def _clip(studio: Studio, name: str, rng: np.random.Generator, frames: int) -> Clip:
    aspect = studio.width / studio.height
    joints = perform(rng, frames, aspect)
    drawing = draw(joints, studio.height * studio.scale, studio.width * studio.scale)
    return Clip(
        name=name,
        frames=np.stack([_planes(studio.paint(drawing, t)) for t in range(frames)]),
        condition=np.stack([_planes(studio.label(drawing, t)) for t in range(frames)]),
    )


def write(
    root: Path,
    height: int = USUAL.height,
    width: int = USUAL.width,
    *,
    seed: int = 0,
    frames: int = FRAMES,
    train: int = CLIPS["train"],
    val: int = CLIPS["val"],
    test: int = CLIPS["test"],
) -> None:
    """Write the set as a folder in the dance layout; other arguments as in ``generate``.

    ``train`` and ``val`` hold ``train_img/N.png``, ``train_label/N.png`` and so on, with one numbering for
    all clips; ``clips.csv`` lists the first and last file (inclusive) of each clip.
    Test sequence S has ``test/test_img/S/0.png`` and ``test/test_label/S/N.png``. Its true frames are in
    ``test_ground_truth/S/N.png``, outside ``test`` so that no model sees them by mistake.

    The folder appears only when it is complete. Its parents are created.

    Raises:
        UserError: ``root`` exists and is not an empty folder, or an argument is out of range.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} exists and is not an empty folder", "name a new folder")
    splits = generate(height, width, seed=seed, frames=frames, train=train, val=val, test=test)
    with replacing(root, folder=True) as draft:
        _write_splits(draft, splits)


def _write_splits(root: Path, splits: dict[str, list[Clip]]) -> None:
    rows = ["split,first,last"]
    for split in ("train", "val"):
        first = 0
        for clip in splits[split]:
            _save(root / split / f"{split}_img", clip.frames, first)
            _save(root / split / f"{split}_label", clip.condition, first)
            rows.append(f"{split},{first},{first + clip.n_frames - 1}")
            first += clip.n_frames
    for number, clip in enumerate(splits["test"]):
        _save(root / "test" / "test_img" / str(number), clip.frames[:1])
        _save(root / "test" / "test_label" / str(number), clip.condition)
        _save(root / "test_ground_truth" / str(number), clip.frames)
    (root / "clips.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _save(folder: Path, images: npt.NDArray[np.generic], first: int = 0) -> None:
    """Images ``[T, 3, H, W]`` as ``folder/N.png``, numbered from ``first``."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images, first):
        Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(folder / f"{number}.png")
