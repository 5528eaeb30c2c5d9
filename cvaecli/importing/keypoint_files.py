"""Keypoints from the files that pose detectors write, and from a plain table.

=============== ==========================================================================================
folder          OpenPose: one ``*_keypoints.json`` a frame
``.json``       COCO: ``images`` and ``annotations``, or a list of results with ``image_id`` and ``keypoints``
``.csv``        DeepLabCut (rows scorer, individuals, bodyparts, coords), or a plain table with the columns
                frame, name, x, y and, if wanted, confidence and person
=============== ==========================================================================================

Files come from anywhere: sizes are bounded, and every number is checked.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.images import link_fault
from ..errors import UserError
from .film import by_number
from .keypoints import COLUMNS, Keypoints, Person, Points
from .skeletons import COCO_17, OPENPOSE, Skeleton, plain

MAX_BYTES = 256 * 2**20
MAX_FRAME_BYTES = 2**20
MAX_VALUES = 8_000_000
"""A file with more values is refused: each takes some 60 bytes of memory while it is read."""
MAX_POINTS = 1000


def read(path: Path, skeleton: Skeleton | None = None) -> Keypoints:
    """The keypoints in a file or a folder; see the module for the formats.

    Args:
        skeleton: names the points of files that do not.

    Raises:
        UserError: not such a file, too large, or a number in it is none. The line names the file and place.
    """
    names = skeleton.points if skeleton else ()
    if path.is_dir():
        return _openpose(path, names)
    if path.suffix.lower() == ".json":
        return _coco(path, names)
    if path.suffix.lower() == ".csv":
        return _table(path)
    raise UserError(f"{path}: unknown keypoint file", "give an OpenPose folder, a COCO .json or a .csv")


# -- JSON --------------------------------------------------------------------------------------------


def _openpose(folder: Path, names: Sequence[str]) -> Keypoints:
    files = sorted(folder.glob("*.json"), key=lambda path: by_number(path.name))
    if not files:
        raise UserError(f"{folder}: no .json files", "give the folder that OpenPose wrote with --write_json")
    if fault := next(filter(None, (link_fault(path, folder) for path in files)), None):
        raise UserError(f"{folder}: {fault}")
    numbers = [re.findall(r"\d+", path.stem) for path in files]
    if all(numbers):  # their numbers may begin at 0 or, after a part of the film was left out, later
        first = int(numbers[0][-1]) if int(numbers[0][-1]) <= 1 else 0
        places = [int(found[-1]) - first for found in numbers]
    else:
        places = list(range(len(files)))
    found: dict[int, list[Person]] = defaultdict(list)
    for place, path in zip(places, files, strict=True):
        content = _json(path, MAX_FRAME_BYTES)
        people = content.get("people") if isinstance(content, dict) else None
        if not isinstance(people, list):
            raise UserError(f"{path}: not an OpenPose file (no list of people)", "write it again")
        for i, person in enumerate(people):
            values = person.get("pose_keypoints_2d") if isinstance(person, dict) else None
            points = _triples(values, f"{path}: people[{i}].pose_keypoints_2d")
            names = names or OPENPOSE.get(len(points), ())
            if len(points) != len(names):
                expected = f"{len(names)} points" if names else "18 (COCO) or 25 (BODY_25) points"
                raise UserError(
                    f"{path}: people[{i}] has {len(points)} points instead of {expected}",
                    "name them in a skeleton file: --skeleton FILE",
                )
            ident = person.get("person_id", [-1])
            known = isinstance(ident, list) and len(ident) == 1 and ident[0] not in (-1, None)
            found[place].append(Person(str(ident[0]) if known else str(i), _checked(points)))
    return Keypoints(str(folder), tuple(names), found, max(places) + 1)


def _coco(path: Path, names: Sequence[str]) -> Keypoints:
    content = _json(path, MAX_BYTES)
    images: list[Any] = []
    if isinstance(content, dict):
        annotations, images = content.get("annotations"), content.get("images") or []
        names = names or _category_names(content)
    else:
        annotations = content
    if not isinstance(annotations, list) or not isinstance(images, list):
        raise UserError(f"{path}: not COCO keypoints (no list of annotations)", "give a COCO keypoints file")
    names = names or COCO_17
    places, sizes = _coco_images(images, path)
    hidden = False
    found: dict[int, list[Person]] = defaultdict(list)
    for i, raw in enumerate(annotations):
        where = f"{path}: annotations[{i}]"
        if not isinstance(raw, dict) or "image_id" not in raw:
            raise UserError(f"{where} has no image_id", "give a COCO keypoints file")
        if raw.get("keypoints") is None:
            continue  # a box without points
        points = _triples(raw["keypoints"], f"{where}.keypoints")
        if len(points) != len(names):
            raise UserError(
                f"{where} has {len(points)} points instead of {len(names)}", "name them: --skeleton"
            )
        place = places.get(_key(raw["image_id"])) if images else raw["image_id"]
        if not isinstance(place, int) or place < 0:
            raise UserError(f"{where}.image_id: {raw['image_id']!r:.40} is no image", "correct the file")
        hidden |= bool((points[:, 2] == 2).any())
        people = found[place]
        people.append(Person(str(raw.get("track_id", len(people))), points))
    for people in found.values():  # visibility 0, 1 (hidden), 2, or a confidence
        people[:] = [Person(p.name, _checked(p.points * [1, 1, 0.5 if hidden else 1])) for p in people]
    size = sizes.pop() if len(sizes) == 1 else None
    return Keypoints(str(path), tuple(names), found, max(places.values()) + 1 if places else None, size)


def _category_names(content: Mapping[str, Any]) -> Sequence[str]:
    for category in content.get("categories") or []:
        names = category.get("keypoints") if isinstance(category, dict) else None
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            return [plain(name) for name in names[:MAX_POINTS]]
    return ()


def _coco_images(images: list[Any], path: Path) -> tuple[dict[Any, int], set[tuple[int, int]]]:
    """The place in the film of each image id, in the order of the file names; and the images' sizes."""
    rows: list[tuple[str, Any]] = []
    sizes = set()
    for i, image in enumerate(images):
        if not isinstance(image, dict) or "id" not in image:
            raise UserError(f"{path}: images[{i}] has no id", "give a COCO keypoints file")
        rows.append((str(image.get("file_name", image["id"])), _key(image["id"])))
        size = image.get("width"), image.get("height")
        if isinstance(size[0], int) and isinstance(size[1], int):
            sizes.add((size[0], size[1]))
    if len(sizes) > 1:
        raise UserError(f"{path}: images of different sizes", "give the keypoints of one film")
    numbers = [re.findall(r"\d+", Path(name).stem) for name, _ in rows]
    if rows and all(numbers):
        places = [int(found[-1]) for found in numbers]
        first = min(places) if min(places) == 1 else 0
        if len(set(places)) == len(places):
            return {key: place - first for (_, key), place in zip(rows, places, strict=True)}, sizes
    return {key: place for place, (_, key) in enumerate(rows)}, sizes


def _key(ident: Any) -> Any:
    return ident if isinstance(ident, int | str) else repr(ident)


def _json(path: Path, limit: int) -> Any:
    content = _bytes(path, limit)
    values = content.count(b",") + content.count(b"[") + content.count(b"{")
    if values > MAX_VALUES:
        raise UserError(f"{path}: {values:,} values, more than {MAX_VALUES:,}", "split the film")
    try:
        return json.loads(content, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({str(error)[:100]})", "write it again") from None


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _triples(values: Any, where: str) -> Points:
    """x, y, confidence of each point, ``[P, 3]``."""
    if not isinstance(values, list) or len(values) % 3 or not 0 < len(values) <= 3 * MAX_POINTS:
        raise UserError(f"{where}: not a list of x, y, confidence", "write the file again")
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        bad = next(v for v in values if not (type(v) in (int, float) and math.isfinite(v)))
        raise UserError(f"{where}: {bad!r:.40} is not a number", "write the file again")
    return np.array(values, np.float64).reshape(-1, 3)


# -- CSV ---------------------------------------------------------------------------------------------


def _table(path: Path) -> Keypoints:
    text = _bytes(path, MAX_BYTES).decode("utf-8-sig", "replace")
    if text.count(",") > MAX_VALUES:
        raise UserError(f"{path}: {text.count(','):,} values, more than {MAX_VALUES:,}", "split the film")
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [cell.strip() for cell in next(rows, [])]
        if header[:1] == ["scorer"]:
            return _deeplabcut(path, rows)
        return _plain(path, [cell.lower() for cell in header], rows)
    except csv.Error as error:
        raise UserError(
            f"{path}: not a table of comma-separated values ({error})", "write it again"
        ) from None


def _deeplabcut(path: Path, rows: Iterator[list[str]]) -> Keypoints:
    head: dict[str, list[str]] = {}
    for row in rows:
        head[row[0] if row else ""] = row[1:]
        if row and row[0] == "coords":
            break
    parts, coords = head.get("bodyparts", []), head.get("coords", [])
    who = head.get("individuals", ["0"] * len(parts))
    columns: dict[str, dict[str, dict[str, int]]] = {}
    for i, (person, part, coord) in enumerate(zip(who, parts, coords, strict=False), 1):
        columns.setdefault(person, {}).setdefault(plain(part), {})[coord] = i
    names = tuple(dict.fromkeys(part for points in columns.values() for part in points))
    complete = all(cells.keys() >= {"x", "y"} for points in columns.values() for cells in points.values())
    if not names or not complete or len(names) > MAX_POINTS:
        raise UserError(
            f"{path}: not a DeepLabCut file",
            "its first rows must be scorer, bodyparts and coords (x, y, ...)",
        )
    found: dict[int, list[Person]] = defaultdict(list)
    count = 0
    for count, row in enumerate((row for row in rows if row), 1):
        where = f"{path} row {row[0]}"
        for person, points in columns.items():
            values = np.zeros((len(names), 3))
            for k, name in enumerate(names):
                cells = points.get(name, {})
                place = [cells.get(coord) for coord in ("x", "y", "likelihood")]
                if cells:
                    values[k] = [1.0 if i is None else _cell(row, i, where) for i in place]
            values = _checked(values)
            if (values[:, 2] > 0).any():
                found[count - 1].append(Person(person, values))
    return Keypoints(str(path), names, found, count)


def _plain(path: Path, header: list[str], rows: Iterator[list[str]]) -> Keypoints:
    if not {"frame", "name", "x", "y"} <= set(header):
        lacking = ", ".join(sorted({"frame", "name", "x", "y"} - set(header)))
        raise UserError(f"{path}: no column {lacking}", f"the header is {','.join(COLUMNS)}")
    place = {column: header.index(column) for column in COLUMNS if column in header}
    figures: dict[tuple[int, str], dict[str, tuple[float, float, float]]] = {}
    names: dict[str, None] = {}
    for number, row in enumerate(rows, 2):
        if not any(cell.strip() for cell in row):
            continue
        where = f"{path} row {number}"
        frame = row[place["frame"]].strip() if len(row) > place["frame"] else ""
        if not (frame.isascii() and frame.isdigit() and len(frame) < 10):
            raise UserError(f"{where}: frame {frame!r:.40} is not a whole number from 0", "correct it")
        x, y = (_cell(row, place[column], where) for column in ("x", "y"))
        sure = _cell(row, place["confidence"], where) if "confidence" in place else 1.0
        name = plain(row[place["name"]]) if len(row) > place["name"] else ""
        names[name] = None
        if len(names) > MAX_POINTS:
            raise UserError(f"{path}: more than {MAX_POINTS} names of points", "is 'name' the right column?")
        person = row[place["person"]].strip() if "person" in place and len(row) > place["person"] else "0"
        figure = figures.setdefault((int(frame), person), {})
        if name in figure:
            raise UserError(
                f"{where}: {name} of frame {frame} is there twice", "tell people apart: column person"
            )
        figure[name] = x, y, sure
    found: dict[int, list[Person]] = defaultdict(list)
    for (frame_number, person), figure in figures.items():
        points = np.array([figure.get(name, (0.0, 0.0, 0.0)) for name in names])
        found[frame_number].append(Person(person, _checked(points)))
    return Keypoints(str(path), tuple(names), found)


def _cell(row: Sequence[str], i: int, where: str) -> float:
    """A number; NaN for an empty cell."""
    text = row[i].strip() if i < len(row) else ""
    try:
        value = float(text) if text else math.nan
        if math.isinf(value):
            raise ValueError
    except ValueError:
        raise UserError(f"{where}, column {i + 1}: {text!r:.40} is not a number", "correct it") from None
    return value


# -- both --------------------------------------------------------------------------------------------


def _checked(points: Points) -> Points:
    """Confidences brought to 0..1; points with NaN, and those at (0, 0), which stands for "not found", are
    missing."""
    points = points.copy()
    points[:, 2] = points[:, 2].clip(0, 1)
    points[np.isnan(points).any(1) | (points[:, :2] == 0).all(1)] = 0
    return points


def _bytes(path: Path, limit: int) -> bytes:
    try:
        if path.stat().st_size > limit:
            raise UserError(f"{path}: larger than {limit // 2**20} MB", "is this the right file?")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})", "check the path") from None
