"""Skeletons: which points a detector names, and which of them a limb joins, in which colour.

A skeleton file is YAML::

    points: [nose, hip, tail]          # only if the keypoint file does not name its points
    limbs:
      - [nose, hip]                    # the colour is chosen
      - [hip, tail, "#ff8800"]
"""

from __future__ import annotations

import colorsys
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ImageColor

from ..config.yaml_text import MAX_CHARACTERS, parse_yaml
from ..errors import UserError
from ..synthetic.dancer.paint import STICK_COLOURS, STICKS

Colour = tuple[int, int, int]

COCO_17 = (
    "nose",
    *(
        f"{side}_{part}"
        for part in ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
        for side in ("left", "right")
    ),
)
"""The points of COCO and of torchvision's Keypoint R-CNN, in order."""
_ARMS = ("nose", "neck", *(f"{s}_{p}" for s in ("right", "left") for p in ("shoulder", "elbow", "wrist")))
_LEGS = tuple(f"{s}_{p}" for s in ("right", "left") for p in ("hip", "knee", "ankle"))
_FACE = ("right_eye", "left_eye", "right_ear", "left_ear")
_FEET = tuple(f"{s}_{p}" for s in ("left", "right") for p in ("big_toe", "small_toe", "heel"))
OPENPOSE = {
    18: (*_ARMS, *_LEGS, *_FACE),
    25: (*_ARMS, "mid_hip", *_LEGS, *_FACE, *_FEET),
}
"""The points of OpenPose's models, by their number: COCO_18 and BODY_25."""


@dataclass(frozen=True)
class Limb:
    """A stick between two named points; a dot if both are the same."""

    start: str
    end: str
    colour: Colour


@dataclass(frozen=True)
class Skeleton:
    """What is drawn of a figure.

    Attributes:
        limbs: sticks and dots. One is left out where the keypoints lack a point of it.
        points: the names of the points for files without names; may be empty.
    """

    limbs: tuple[Limb, ...]
    points: tuple[str, ...] = ()


def _person() -> Skeleton:
    """OpenPose's colours, as the built-in dancer has them; feet where they are known."""
    colours = dict(zip(STICKS, STICK_COLOURS, strict=True))
    feet = {
        (f"{side}_ankle", f"{side}_{end}"): colours[f"{side}_knee", f"{side}_ankle"]
        for side in ("right", "left")
        for end in ("big_toe", "heel")
    }
    return Skeleton(tuple(Limb(a, b, colour) for (a, b), colour in (colours | feet).items()))


PERSON = _person()


def choose(wanted: Skeleton | str | None, points: Sequence[str]) -> Skeleton:
    """The skeleton for keypoints with these names.

    Args:
        wanted: a skeleton; ``person``; ``points`` (a dot for each point); or None: person where at least two
            of its limbs are known, else points.

    Raises:
        UserError: a limb has a point that the keypoints lack.
    """
    if wanted == "person" or (wanted is None and len(_known(PERSON, points)) >= 2):
        if not _known(PERSON, points):
            fault = f"--skeleton person: none of its limbs is among {_listed(points)}"
            raise UserError(fault, "rename the points, or write a skeleton file")
        return PERSON
    if not isinstance(wanted, Skeleton):
        colours = rainbow(len(points))
        return Skeleton(tuple(Limb(p, p, colour) for p, colour in zip(points, colours, strict=True)))
    for limb in wanted.limbs:
        for point in (limb.start, limb.end):
            if point not in points:
                fault = f"--skeleton: the keypoints have no {point!r}"
                raise UserError(fault, f"they have {_listed(points)}")
    return wanted


def read(path: Path) -> Skeleton:
    """A skeleton from a YAML file.

    Raises:
        UserError: it cannot be read, or is not a skeleton.
    """
    try:
        with path.open(encoding="utf-8") as file:
            raw = parse_yaml(file.read(MAX_CHARACTERS + 1), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})", "give a YAML file, person or points") from None
    if not isinstance(raw, dict) or not raw.keys() <= {"points", "limbs"} or not raw.get("limbs"):
        raise UserError(f"{path}: not a skeleton", "write limbs: [[a, b], ...] and, if needed, points: [...]")
    points = raw.get("points") or []
    if not isinstance(points, list) or not all(isinstance(point, str) for point in points):
        raise UserError(f"{path}: points is not a list of names", "write points: [nose, neck, ...]")
    limbs = raw["limbs"] if isinstance(raw["limbs"], list) else [raw["limbs"]]
    colours = rainbow(len(limbs))
    read_limbs = (_limb(limb, colour, path) for limb, colour in zip(limbs, colours, strict=True))
    return Skeleton(tuple(read_limbs), tuple(map(plain, points)))


def _limb(raw: Any, colour: Colour, path: Path) -> Limb:
    words = isinstance(raw, list) and len(raw) in (2, 3) and all(isinstance(word, str) for word in raw)
    if not words:
        raise UserError(f'{path}: the limb {raw!r} is not [a, b] or [a, b, "#rrggbb"]', "correct it")
    if len(raw) == 3:
        try:
            colour = ImageColor.getrgb(raw[2])[:3]
        except ValueError:
            raise UserError(f"{path}: {raw[2]!r} is not a colour", 'write "#rrggbb" or a name') from None
    return Limb(plain(raw[0]), plain(raw[1]), colour)


def plain(name: str) -> str:
    """A point's name in small letters with underscores: "Left Knee" is left_knee."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())[:100]


def rainbow(count: int) -> list[Colour]:
    """Colours that differ as much as possible, for drawing on white."""
    shades = (colorsys.hsv_to_rgb(i / max(count, 1), 1.0, 0.9) for i in range(count))
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in shades]


def _known(skeleton: Skeleton, points: Sequence[str]) -> list[Limb]:
    return [limb for limb in skeleton.limbs if {limb.start, limb.end} <= set(points)]


def _listed(points: Sequence[str]) -> str:
    return ", ".join(points[:30]) + (", ..." if len(points) > 30 else "")
