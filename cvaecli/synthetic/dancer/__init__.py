"""The built-in data set: a person who moves through a lit room, with pose-skeleton labels.

For everyone without data of their own. Pictures and labels are drawn, not recorded, so they are the
same for the same seed on every machine:

- one room, one light, one person in all clips; another random motion in each;
- every frame is a function of the room and the skeleton: the condition tells all that can be told;
- labels are sticks in OpenPose's colours on white, seen through furniture, clipped by the picture.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cvaecli.data.clip import Clip
from cvaecli.errors import UserError
from cvaecli.synthetic.dancer.paint import Studio, draw
from cvaecli.synthetic.dancer.person import perform

Bytes = npt.NDArray[np.uint8]


def _planes(image: Image.Image) -> Bytes:
    return np.asarray(image).transpose(2, 0, 1)


def generate(
    height: int = 32,
    width: int = 64,
    *,
    seed: int = 0,
    frames: int = 630,
    train_clips: int = 3,
    test_clips: int = 2,
) -> dict[str, list[Clip]]:
    """Draw the whole set.

    Args:
        height, width: picture size in pixels, each at least 16. The room is made for 2:1.
        seed: seeds the motions; the room and the person are always the same.
        frames: frames a clip, at least 2. From 300 on, each clip leaves the picture once
            (pictures much wider than 2:1 may be too wide for that).
        train_clips, test_clips: clips in these splits, at least 1; ``val`` has one.

    Returns:
        Splits ``train``, ``val`` and ``test``. Clips are named ``train/0`` and so on; frames and
        condition are uint8 ``[frames, 3, height, width]``, and every frame is true, in ``test`` too.

    Raises:
        UserError: an argument is out of range.
    """
    for name, value, least in (("height", height, 16), ("width", width, 16), ("frames", frames, 2)):
        if value < least:
            raise UserError(f"{name} is {value}", f"the synthetic set needs at least {least}")
    if min(train_clips, test_clips) < 1:
        raise UserError("the synthetic set needs at least one train clip and one test clip")
    studio = Studio(height, width)
    splits: dict[str, list[Clip]] = {}
    for number, (split, count) in enumerate((("train", train_clips), ("val", 1), ("test", test_clips))):
        splits[split] = [
            _clip(studio, f"{split}/{i}", np.random.default_rng([seed, number, i]), frames)
            for i in range(count)
        ]
    return splits


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
    height: int = 32,
    width: int = 64,
    *,
    seed: int = 0,
    frames: int = 630,
    train_clips: int = 3,
    test_clips: int = 2,
) -> None:
    """Write the set as a folder in the dance layout; arguments as for ``generate``.

    ``train`` and ``val`` hold ``S_img/N.png`` and ``S_label/N.png`` with clips back to back in one
    numbering, ``clips.csv`` says which files (first and last, inclusive) are one clip. Test sequence S
    has ``test/test_img/S/0.png``, ``test/test_label/S/N.png`` and, outside of ``test`` so that no model
    is shown them by mistake, its true frames in ``test_ground_truth/S/N.png``.

    The folder appears only when complete. Its parents are made.

    Raises:
        UserError: ``root`` exists and is not an empty folder, or an argument is out of range.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} exists and is not an empty folder", "name a new folder")
    splits = generate(height, width, seed=seed, frames=frames, train_clips=train_clips, test_clips=test_clips)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as temporary:
        # A folder inside it, because the temporary one is open to its owner only.
        draft = Path(temporary) / "set"
        _write_splits(draft, splits)
        if root.exists():
            root.rmdir()
        draft.rename(root)


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
