"""Drawing the person: a body of convex parts, a shadow, and the label's sticks.

Shapes are polygons on a canvas several times as large as the picture. Down-sampling it smooths the edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from cvaecli.synthetic.dancer import room

Array = npt.NDArray[np.float64]

JACKET, TROUSERS, SKIN, HAIR = (138, 18, 34), (26, 29, 56), (222, 164, 128), (44, 28, 22)
SHOES, SHIRT, EYES = (24, 22, 26), (250, 246, 238), (30, 20, 20)
ANGLES = np.linspace(0, 2 * np.pi, 20, endpoint=False)
DIRECTIONS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
# Bands of flat colour look round: each is smaller than the one before, nearer to the light and brighter.
BANDS = ((1.0, 0.68), (0.74, 0.92), (0.4, 1.12))  # (share of the radius, brightness)
TOWARDS_LIGHT = np.array([-0.55, -0.6])


@dataclass(frozen=True)
class Part:
    """One convex part of the body: the convex hull of balls.

    Attributes:
        group: parts of one group are painted together, in the order of `PARTS`; groups are painted from far
            to near.
        colour: RGB, 0..255.
        balls: the balls' radii in metres, by the joint at their centre.
        shown_by: the name of a direction. The part, e.g. a face, shrinks as this turns away from the camera.
    """

    group: str
    colour: tuple[int, int, int]
    balls: dict[str, float]
    shown_by: str = ""


def _sided(side: str) -> tuple[Part, ...]:
    arm, leg, foot, hand = (f"{side}_{name}" for name in ("arm", "leg", "foot", "hand"))
    return (
        Part(leg, TROUSERS, {f"{side}_hip": 0.12, f"{side}_knee": 0.082}),
        Part(leg, TROUSERS, {f"{side}_knee": 0.08, f"{side}_ankle": 0.062}),
        Part(foot, SHOES, {f"{side}_heel": 0.055, f"{side}_toes": 0.045}),
        Part(arm, JACKET, {f"{side}_shoulder": 0.085, f"{side}_elbow": 0.064}),
        Part(arm, JACKET, {f"{side}_elbow": 0.063, f"{side}_wrist": 0.05}),
        Part(hand, SKIN, {f"{side}_wrist": 0.042, f"{side}_hand": 0.05}),
    )


PARTS = (
    *_sided("left"),
    *_sided("right"),
    Part("trunk", TROUSERS, {"left_hip": 0.125, "right_hip": 0.125, "pelvis": 0.13}),
    Part(
        "chest",
        JACKET,
        {
            f"{side}_{joint}": r
            for side in ("left", "right")
            for joint, r in (("shoulder", 0.08), ("waist", 0.11))
        }
        | {"chest": 0.15, "belly": 0.13},
    ),
    Part("chest", SHIRT, {"collar": 0.06, "breast": 0.015}, "chest_forward"),
    Part("head", SKIN, {"neck": 0.06, "head": 0.06}),
    Part("head", HAIR, {"head": 0.135, "bun": 0.06}),
    Part("head", SKIN, {"brow": 0.1, "chin": 0.07}, "head_forward"),
    Part("head", EYES, {"left_eye": 0.013}, "head_forward"),
    Part("head", EYES, {"right_eye": 0.013}, "head_forward"),
)
GROUPS = tuple(dict.fromkeys(part.group for part in PARTS))

STICKS: tuple[tuple[str, str], ...] = (
    ("neck", "right_shoulder"),
    ("neck", "left_shoulder"),
    *((f"right_{a}", f"right_{b}") for a, b in (("shoulder", "elbow"), ("elbow", "wrist"))),
    *((f"left_{a}", f"left_{b}") for a, b in (("shoulder", "elbow"), ("elbow", "wrist"))),
    *((a, f"right_{b}") for a, b in (("neck", "hip"), ("right_hip", "knee"), ("right_knee", "ankle"))),
    *((a, f"left_{b}") for a, b in (("neck", "hip"), ("left_hip", "knee"), ("left_knee", "ankle"))),
    ("neck", "nose"),
    *((a, f"right_{b}") for a, b in (("nose", "eye"), ("right_eye", "ear"))),
    *((a, f"left_{b}") for a, b in (("nose", "eye"), ("left_eye", "ear"))),
)


def _rainbow(n: int) -> list[tuple[int, int, int]]:
    """``n`` of OpenPose's limb colours: once around the colour circle from red, in steps of 85/255."""
    wheel = [(255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255), (255, 0, 0)]
    colours = []
    for i in range(n):
        a, b, t = wheel[i // 3], wheel[i // 3 + 1], i % 3
        colours.append(
            (a[0] + (b[0] - a[0]) * t // 3, a[1] + (b[1] - a[1]) * t // 3, a[2] + (b[2] - a[2]) * t // 3)
        )
    return colours


STICK_COLOURS = _rainbow(len(STICKS))


def _hull(centres: Array, radii: Array, flat: Array | float = 1.0) -> Array:
    """Outlines ``[T, K, 2]`` of the hulls of discs.

    In each of K directions the outermost point of the hull is on the disc that reaches farthest.

    Args:
        centres: ``[T, n, 2]`` in pixels.
        radii: ``[T, n]`` in pixels.
        flat: ``[T]``: factor on the discs' height, because discs on the floor look flat.
    """
    reach = np.ones((len(centres), 1, 1, 2))
    reach[..., 1] = np.reshape(flat, (-1, 1, 1))
    rim = centres[:, :, None] + radii[:, :, None, None] * DIRECTIONS * reach  # [T, n, K, 2]
    best = (rim * DIRECTIONS).sum(-1).argmax(1)  # [T, K]
    return np.take_along_axis(rim, best[:, None, :, None], axis=1)[:, 0]


@dataclass(frozen=True)
class Drawing:
    """All shapes of a clip, in pixels of the large canvas; outlines have K points.

    Attributes:
        body: outlines ``[T, parts, bands, K, 2]``.
        colours: colours of the body, ``[T, parts, bands, 3]``, 0..255.
        shown: ``[T, parts]``: whether a part is visible.
        order: ``[T, groups]``: the groups from far to near.
        shadow: outlines ``[T, parts, K, 2]``.
        sticks: outlines ``[T, sticks, K, 2]``.
        stick_order: ``[T, sticks]``: the sticks from far to near.
    """

    body: Array
    colours: npt.NDArray[np.int64]
    shown: npt.NDArray[np.bool_]
    order: npt.NDArray[np.int64]
    shadow: Array
    sticks: Array
    stick_order: npt.NDArray[np.int64]


def draw(p: dict[str, Array], height: int, width: int) -> Drawing:
    """Turn joints, each ``[T, 3]`` in metres, into shapes on a canvas of height x width pixels."""
    body, colours, shadow, depth, shown = [], [], [], [], []
    for part in PARTS:
        joints = np.stack([p[name] for name in part.balls], axis=1)
        centres, scale = room.project(joints, height, width)
        radii = scale * np.array(list(part.balls.values()))
        middle = centres.mean(1, keepdims=True)
        if part.shown_by:
            opened = _openness(p[part.shown_by], joints.mean(1))[:, None]
            radii, centres = radii * opened, middle + (centres - middle) * opened[..., None]
        shown.append((radii > 0).all(1))
        outlines = []
        for share, _ in BANDS:
            inner = middle + (centres - middle) * (0.5 + 0.5 * share)
            lean = radii[..., None] * TOWARDS_LIGHT * (1 - share) * 0.7
            outlines.append(_hull(inner + lean, radii * share))
        body.append(np.stack(outlines, axis=1))
        tone = np.array([b for _, b in BANDS])[:, None] * np.array(part.colour)
        x = joints[..., 0].mean(1) * room.ASPECT * height / width
        bright = room.light(x, joints[..., 2].mean(1))
        colours.append(np.minimum(bright[:, None, None] * tone, 255))
        shadow.append(_shadow(joints, np.array(list(part.balls.values())), height, width))
        depth.append(joints[..., 2].mean(1))
    groups = [np.mean([d for d, q in zip(depth, PARTS, strict=True) if q.group == g], axis=0) for g in GROUPS]
    sticks, stick_depth = _sticks(p, height, width)
    return Drawing(
        body=np.stack(body, axis=1),
        colours=np.stack(colours, axis=1).astype(np.int64),
        shown=np.stack(shown, axis=1),
        order=np.argsort(-np.stack(groups, axis=1), axis=1, kind="stable"),
        shadow=np.stack(shadow, axis=1),
        sticks=sticks,
        stick_order=np.argsort(-stick_depth, axis=1, kind="stable"),
    )


def _openness(direction: Array, at: Array) -> Array:
    """0 where ``direction`` points away from the camera, 1 where it points to it, smooth in between."""
    view = np.array([0.0, room.CAMERA_HEIGHT, 0.0]) - at
    cosine = (direction * view).sum(1) / np.sqrt((view**2).sum(1))
    t = np.clip((cosine + 0.3) / 0.75, 0, 1)
    opened: Array = t * t * (3 - 2 * t)
    return opened


def _shadow(joints: Array, radii: Array, height: int, width: int) -> Array:
    """Outlines ``[T, K, 2]`` of the shadow of balls ``[T, n, 3]``; the light is high on the left."""
    up = joints[..., 1]
    ground = np.stack([joints[..., 0] + 0.22 * up, 0 * up, joints[..., 2] + 0.12 * up], axis=-1)
    centres, scale = room.project(ground, height, width)
    return _hull(centres, 1.25 * scale * radii, room.CAMERA_HEIGHT / ground[..., 2].mean(1))


def _sticks(p: dict[str, Array], height: int, width: int) -> tuple[Array, Array]:
    """Outlines ``[T, sticks, K, 2]`` and depths ``[T, sticks]`` of the label's sticks."""
    outlines, depths = [], []
    for ends in STICKS:
        joints = np.stack([p[name] for name in ends], axis=1)
        centres, _ = room.project(joints, height, width)
        outlines.append(_hull(centres, np.full(centres.shape[:2], height / 55)))
        depths.append(joints[..., 2].mean(1))
    return np.stack(outlines, axis=1), np.stack(depths, axis=1)


class Studio:
    """The room at one picture size, ready to paint on. A pixel is ``scale`` x ``scale`` canvas pixels."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.scale = max(4, min(8, 512 // max(width, 2 * height)))
        colours, front, floor = room.cast(height * self.scale, width * self.scale)
        dark = np.where(floor[..., None], colours * np.array([0.52, 0.52, 0.58]), colours)
        self.canvas = _image(colours)
        self.dark = _image(dark)
        self.front = Image.fromarray(front.astype(np.uint8) * 255)
        self.empty = self.canvas.reduce(self.scale)
        self.white = Image.new("RGB", (width, height), (255, 255, 255))

    def window(self, outline: Array) -> tuple[int, int, int, int] | None:
        """The pixels (left, top, right, bottom) that an outline on the canvas touches; None if none."""
        low = np.floor(outline.min(0) / self.scale).astype(int) - 1
        high = np.ceil(outline.max(0) / self.scale).astype(int) + 1
        left, top = max(int(low[0]), 0), max(int(low[1]), 0)
        right, bottom = min(int(high[0]), self.width), min(int(high[1]), self.height)
        return (left, top, right, bottom) if left < right and top < bottom else None

    def paint(self, drawing: Drawing, t: int) -> Image.Image:
        """Frame t: the room, the shadow, the body from far to near, the furniture in the foreground."""
        body, shadow = drawing.body[t], drawing.shadow[t]
        box = self.window(np.concatenate([body.reshape(-1, 2), shadow.reshape(-1, 2)]))
        picture = self.empty.copy()
        if box is None:
            return picture
        area = (box[0] * self.scale, box[1] * self.scale, box[2] * self.scale, box[3] * self.scale)
        clean = self.canvas.crop(area)
        canvas = clean.copy()
        mask = Image.new("L", canvas.size)
        pen = ImageDraw.Draw(mask)
        for outline in (shadow - area[:2]).reshape(len(PARTS), -1).tolist():
            pen.polygon(outline, fill=255)
        mask = mask.reduce(self.scale).resize(canvas.size, Image.Resampling.BILINEAR)
        canvas.paste(self.dark.crop(area), mask=mask)
        pen = ImageDraw.Draw(canvas)
        outlines = (body - area[:2]).reshape(len(PARTS), len(BANDS), -1).tolist()
        colours = drawing.colours[t].tolist()
        for group in drawing.order[t]:
            for pieces in _LAYERS[group]:
                for band in range(len(BANDS)):
                    for piece in pieces:
                        if drawing.shown[t, piece]:
                            pen.polygon(outlines[piece][band], fill=tuple(colours[piece][band]))
        canvas.paste(clean, mask=self.front.crop(area))
        picture.paste(canvas.reduce(self.scale), box[:2])
        return picture

    def label(self, drawing: Drawing, t: int) -> Image.Image:
        """The label of frame t: coloured sticks on white, nearer ones over farther ones."""
        picture = self.white.copy()
        box = self.window(drawing.sticks[t].reshape(-1, 2))
        if box is None:
            return picture
        area = (box[0] * self.scale, box[1] * self.scale)
        size = ((box[2] - box[0]) * self.scale, (box[3] - box[1]) * self.scale)
        canvas = Image.new("RGB", size, (255, 255, 255))
        pen = ImageDraw.Draw(canvas)
        outlines = (drawing.sticks[t] - area).reshape(len(STICKS), -1).tolist()
        for i in drawing.stick_order[t]:
            pen.polygon(outlines[i], fill=STICK_COLOURS[i])
        picture.paste(canvas.reduce(self.scale), box[:2])
        return picture


def _layers(group: str) -> tuple[tuple[int, ...], ...]:
    """A group's parts by layer. Successive parts of one colour share a layer, to avoid visible seams."""
    layers: list[list[int]] = []
    for i, part in enumerate(PARTS):
        if part.group == group:
            if layers and PARTS[layers[-1][-1]].colour == part.colour:
                layers[-1].append(i)
            else:
                layers.append([i])
    return tuple(tuple(layer) for layer in layers)


_LAYERS = tuple(_layers(group) for group in GROUPS)


def _image(colours: Array) -> Image.Image:
    return Image.fromarray((colours * 255 + 0.5).astype(np.uint8))
