"""Drawing the table: the camera looks down on it, slightly from the front; the light is at the upper left.

Shapes are signed distances (negative inside) in table widths. Their edges are soft over one canvas pixel.
Pictures are drawn ``scale`` times as large and down-sampled, so that textures do not flicker when they move.
A shape is computed only in the part of the picture that it covers in some frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .world import World

Floats = npt.NDArray[np.float32]
Colour = tuple[float, float, float]

LIGHT = np.array([-0.6, -0.8])
"""Direction of the light source, seen from above."""
RISE = 0.3
"""Upward shift of a point in the picture per unit of height."""
SHADE = np.array([0.45, 0.5])
"""Offset of a shadow from its object in x and y per unit of height."""
THICK = 0.05  # height of the objects
SHOULDER = np.array([0.5, -0.34])
LINKS = (0.72, 0.70)
ORANGE: Colour = (0.90, 0.42, 0.10)
LIFTS = ((0.0, 0.16), (0.03, 0.30), (0.06, 0.62))
"""Slices of the fingers from the tips upwards: height above the hand, and brightness."""

PALETTE: tuple[tuple[Colour, Colour], ...] = (
    ((0.86, 0.16, 0.14), (0.98, 0.87, 0.72)),
    ((0.12, 0.36, 0.80), (0.93, 0.95, 0.98)),
    ((0.96, 0.74, 0.08), (0.30, 0.20, 0.10)),
    ((0.10, 0.55, 0.28), (0.90, 0.95, 0.60)),
    ((0.55, 0.20, 0.62), (0.98, 0.75, 0.30)),
    ((0.92, 0.45, 0.08), (0.13, 0.20, 0.42)),
    ((0.94, 0.94, 0.92), (0.80, 0.12, 0.30)),
    ((0.08, 0.60, 0.66), (0.99, 0.93, 0.80)),
)
SHAPES = 4
TEXTURES = 5


@dataclass
class Canvas:
    """The pictures of one trajectory before down-sampling: ``[T, 3, h, w]`` float32 in 0..1."""

    pixels: Floats

    def window(self, centres: npt.NDArray[np.float64], extent: float) -> Window | None:
        """The part of the pictures within ``extent`` of any of ``centres`` ``[..., 2]``; None if empty."""
        h, w = self.pixels.shape[2:]
        flat = centres.reshape(-1, 2)
        low, high = flat.min(0) - extent, flat.max(0) + extent
        left, top = max(0, int(low[0] * w)), max(0, int(low[1] * h))
        right, bottom = min(w, int(high[0] * w) + 2), min(h, int(high[1] * h) + 2)
        if left >= right or top >= bottom:
            return None
        y, x = np.mgrid[top:bottom, left:right].astype(np.float32) + np.float32(0.5)
        return Window(self.pixels[..., top:bottom, left:right], x / w, y / h, 1 / min(w, h))


@dataclass
class Window:
    """A part of a canvas, with the table coordinates ``x``, ``y`` ``[h, w]`` and the size of its pixels."""

    pixels: Floats
    x: Floats
    y: Floats
    pixel: float

    def about(self, centres: npt.NDArray[np.float64]) -> tuple[Floats, Floats]:
        """Coordinates ``[T, h, w]`` relative to the centres ``[T, 2]``."""
        c = centres.astype(np.float32)[:, :, None, None]
        return self.x - c[:, 0], self.y - c[:, 1]

    def lay(self, colour: Floats, distance: Floats) -> None:
        """Paints a colour (``[T, 3, h, w]`` or ``[3, 1, 1]``) where ``distance`` is negative."""
        cover = _ramp(np.float32(0.5) - distance * np.float32(1 / self.pixel))
        layer = np.minimum(colour, np.float32(1)) - self.pixels
        layer *= cover[:, None]
        self.pixels += layer

    def shadow(self, distance: Floats, soft: float | Floats, strength: float) -> None:
        """Darkens where ``distance`` is negative, with an edge of width ``soft``. Shadows are bluish."""
        cover = _ramp(np.float32(0.5) - distance / (np.float32(self.pixel) + soft))
        dark = np.float32(strength) * cover * cover * (3 - 2 * cover)
        self.pixels *= 1 - dark[:, None] * _rgb((0.95, 0.88, 0.78))


def _rgb(colour: Colour) -> Floats:
    return np.array(colour, np.float32)[:, None, None]


# -- signed distances ----------------------------------------------------------------------------------


def _length(u: Floats, v: Floats) -> Floats:
    length: Floats = np.sqrt(u * u + v * v)  # np.hypot also avoids overflow, which takes four times as long
    return length


def _box(u: Floats, v: Floats, half_u: float | Floats, half_v: float | Floats, corner: float) -> Floats:
    a, b = np.abs(u) - half_u + np.float32(corner), np.abs(v) - half_v + np.float32(corner)
    inside = np.minimum(np.maximum(a, b), 0)
    return _length(np.maximum(a, 0), np.maximum(b, 0)) + inside - np.float32(corner)


def _hexagon(u: Floats, v: Floats, radius: float) -> Floats:
    u, v = np.abs(u), np.abs(v)
    distance: Floats = np.maximum(u * np.float32(0.8660254) + v * np.float32(0.5), v) - np.float32(radius)
    return distance


def _capsule(
    window: Window, start: npt.NDArray[np.float64], end: npt.NDArray[np.float64], radii: tuple[Floats, Floats]
) -> tuple[Floats, Floats, Floats]:
    """Distance, position along (0 at ``start``, 1 at ``end``) and across (-1..1), each ``[T, h, w]``."""
    x, y = window.about(start)
    way = (end - start).astype(np.float32)[:, :, None, None]
    length2 = way[:, 0] ** 2 + way[:, 1] ** 2
    along = np.clip((x * way[:, 0] + y * way[:, 1]) / length2, 0, 1)
    radius = radii[0] + along * (radii[1] - radii[0])
    distance = _length(x - along * way[:, 0], y - along * way[:, 1]) - radius
    across = (x * way[:, 1] - y * way[:, 0]) / np.sqrt(length2) / radius
    return distance, along, across


def _ramp(values: npt.NDArray[np.floating]) -> Floats:
    """``values`` as float32, clipped to 0..1."""
    ramp: Floats = np.clip(values, 0, 1).astype(np.float32, copy=False)
    return ramp


def _wave(u: Floats, edge: float) -> Floats:
    """A square wave between 0 and 1, of period 1, with soft edges."""
    return _ramp(0.5 + np.sin(2 * np.pi * u) / edge)


# -- objects -------------------------------------------------------------------------------------------


def _shape(kind: int, radius: float, u: Floats, v: Floats) -> Floats:
    """Distance from the outline, in the object's own coordinates."""
    which = kind % SHAPES
    if which == 0:
        return _box(u, v, 0.9 * radius, 0.9 * radius, 0.25 * radius)
    if which == 1:
        return _length(u, v) - np.float32(radius)
    if which == 2:
        return _box(u, v, 1.25 * radius, 0.68 * radius, 0.2 * radius)
    return _hexagon(u, v, 0.95 * radius)


def _texture(kind: int, u: Floats, v: Floats) -> Floats:
    """Share of the second colour, ``[T, h, w]``. ``u`` and ``v`` are in radii."""
    which = kind // SHAPES % TEXTURES
    if which == 0:
        return _wave(u * 1.05 + 0.25, 0.5)
    if which == 1:
        a, b = _wave(u * 0.75, 0.5), _wave(v * 0.75, 0.5)
        return _ramp(a + b - 2 * a * b)
    if which == 2:
        spots = _length(np.abs(u) - np.float32(0.42), np.abs(v) - np.float32(0.42))
        return _ramp((np.float32(0.24) - spots) * 8)
    if which == 3:
        return _ramp((u - 0.1 * v) * 6 + 0.5)
    return _ramp(0.5 + (0.16 - np.abs(_length(u - 0.12, v) - 0.5)) * 9)


def _paint_object(
    canvas: Canvas, places: npt.NDArray[np.float64], turns: npt.NDArray[np.float64], radius: float, kind: int
) -> None:
    top = places - [0, RISE * THICK]
    window = canvas.window(np.concatenate([top, places + SHADE * THICK]), 1.5 * radius)
    if window is None:
        return
    cos, sin = (f(turns).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))

    def local(centres: npt.NDArray[np.float64]) -> tuple[Floats, Floats, Floats, Floats]:
        x, y = window.about(centres)
        return x * cos + y * sin, y * cos - x * sin, x, y

    u, v, *_ = local(places + SHADE * THICK * 0.8)
    window.shadow(_shape(kind, radius, u, v), 0.035, 0.55)
    first, second = map(_rgb, PALETTE[kind // (SHAPES * TEXTURES) % len(PALETTE)])
    for share in (0.0, 0.5):  # the front side, seen below the top
        u, v, *_ = local(places - [0, RISE * THICK * share])
        window.lay(np.float32(0.42) * first, _shape(kind, radius, u, v))
    u, v, x, y = local(top)
    distance = _shape(kind, radius, u, v)
    mix = _texture(kind, u / np.float32(radius), v / np.float32(radius))[:, None]
    colour = first * (1 - mix) + second * mix
    towards = (x * np.float32(LIGHT[0]) + y * np.float32(LIGHT[1])) / np.float32(radius)
    bevel = np.clip(1 + distance / np.float32(0.28 * radius), 0, 1)  # 1 at the outline
    shade = 1.0 + 0.08 * towards + 0.28 * bevel * towards
    gloss = 0.30 * np.exp(-((x / radius + 0.35) ** 2 + (y / radius + 0.4) ** 2) / 0.07)
    window.lay(colour * shade[:, None] + gloss[:, None], distance)


# -- the arm -------------------------------------------------------------------------------------------


def _elbow(hands: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The place of the elbow, seen from above, ``[T, 2]``. It always bends to the right of the picture."""
    way = hands - SHOULDER
    distance = np.clip(np.linalg.norm(way, axis=-1, keepdims=True), 0.1, sum(LINKS) - 1e-3)
    along = (distance**2 + LINKS[0] ** 2 - LINKS[1] ** 2) / (2 * distance)
    out = np.sqrt(np.maximum(LINKS[0] ** 2 - along**2, 0))
    unit = way / np.linalg.norm(way, axis=-1, keepdims=True)
    bent: npt.NDArray[np.float64] = SHOULDER + unit * along + np.stack([unit[:, 1], -unit[:, 0]], -1) * out
    return bent


def _seen(points: npt.NDArray[np.float64], heights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return points - np.stack([np.zeros_like(heights), RISE * heights], -1)


def _paint_arm(canvas: Canvas, positions: npt.NDArray[np.float64], grips: npt.NDArray[np.float64]) -> None:
    hands, z = positions[:, :2], positions[:, 2]
    elbow = _elbow(hands)
    high = np.full_like(z, 0.42)
    wrist = z + 0.10
    tip = hands - 0.055 * _axes(hands, elbow)[0]
    ends = ((np.broadcast_to(SHOULDER, hands.shape), elbow, high, high), (elbow, tip, high, wrist))
    big = [_column(0.075 * (1 + 0 * z)), _column(0.062 + 0 * z), _column(0.036 + 0.05 * wrist)]
    sizes = ((big[0], big[1]), (big[1], big[2]))
    _paint_gripper_shadow(canvas, hands, z, grips, elbow)
    for (start, end, low, up), radii in zip(ends, sizes, strict=True):
        at = start + SHADE * low[:, None] * 0.6, end + SHADE * up[:, None] * 0.6
        window = canvas.window(np.concatenate(at), 0.12)
        if window is not None:
            window.shadow(_capsule(window, *at, radii)[0], 0.07, 0.40)
    _paint_fingers(canvas, hands, z, grips, elbow)
    for (start, end, low, up), radii in zip(ends, sizes, strict=True):
        at = _seen(start, low), _seen(end, up)
        window = canvas.window(np.concatenate(at), 0.09)
        if window is not None:
            _paint_link(window, *_capsule(window, *at, radii), (0.85, 0.85, 0.87))
    _paint_joint(canvas, _seen(elbow, high + 0.03), 0.058 + 0 * z, ORANGE)
    _paint_joint(canvas, _seen(tip, wrist + 0.02), 0.026 + 0.03 * wrist, (0.30, 0.32, 0.36))


def _column(values: npt.NDArray[np.float64]) -> Floats:
    return values.astype(np.float32)[:, None, None]


def _paint_link(window: Window, distance: Floats, along: Floats, across: Floats, tone: Colour) -> None:
    """A tube, bright at its upper left and dark at its outline, with a coloured band and a seam."""
    shade = 0.50 + 0.55 * np.sqrt(np.maximum(1 - np.minimum(np.abs(across - 0.25), 1) ** 2, 0))
    band = _ramp((0.055 - np.abs(along - 0.78)) * 40)[:, None]
    seam = _ramp((0.012 - np.abs(along - 0.66)) * 90)
    base = _rgb(tone) * (1 - band) + _rgb(ORANGE) * band
    window.lay(base * _ramp((1 - np.float32(0.5) * seam) * shade)[:, None], distance)


def _paint_joint(
    canvas: Canvas, centres: npt.NDArray[np.float64], radii: npt.NDArray[np.float64], tone: Colour
) -> None:
    window = canvas.window(centres, float(radii.max()) + 0.02)
    if window is None:
        return
    x, y = window.about(centres)
    radius = _column(radii)
    distance = _length(x, y)
    towards = (x * np.float32(LIGHT[0]) + y * np.float32(LIGHT[1])) / radius
    window.lay(_rgb((0.16, 0.17, 0.20)), distance - radius)
    cap = _ramp(_rgb(tone) * (1 + np.float32(0.35) * towards)[:, None])
    window.lay(cap, distance - np.float32(0.74) * radius)


def _axes(
    hands: npt.NDArray[np.float64], elbow: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Unit vectors ``[T, 2]`` along the forearm and across it."""
    way = hands - elbow
    along = way / np.linalg.norm(way, axis=-1, keepdims=True)
    return along, np.stack([-along[:, 1], along[:, 0]], -1)


def _fingers(
    window: Window,
    centres: npt.NDArray[np.float64],
    grips: npt.NDArray[np.float64],
    axes: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
) -> tuple[Floats, Floats, Floats]:
    """Distance from the fingers, distance from the palm, and position across, each ``[T, h, w]``."""
    x, y = window.about(centres)
    (ax, ay), (bx, by) = ((_column(axis[:, 0]), _column(axis[:, 1])) for axis in axes)
    u: Floats = x * ax + y * ay
    v: Floats = x * bx + y * by
    apart = _column(0.020 + 0.032 * (1 - grips))
    beside: Floats = np.abs(v) - apart
    fingers = _box(u - np.float32(0.012), beside, 0.040, 0.014, 0.008)
    palm = _box(u + np.float32(0.032), v, 0.020, apart + np.float32(0.018), 0.010)
    return fingers, palm, v


def _paint_gripper_shadow(
    canvas: Canvas,
    hands: npt.NDArray[np.float64],
    z: npt.NDArray[np.float64],
    grips: npt.NDArray[np.float64],
    elbow: npt.NDArray[np.float64],
) -> None:
    centres = hands + SHADE * (z[:, None] + 0.02)
    window = canvas.window(centres, 0.13)
    if window is not None:
        fingers, palm, _ = _fingers(window, centres, grips, _axes(hands, elbow))
        window.shadow(np.minimum(fingers, palm), _column(0.02 + 0.25 * z), 0.6)


def _paint_fingers(
    canvas: Canvas,
    hands: npt.NDArray[np.float64],
    z: npt.NDArray[np.float64],
    grips: npt.NDArray[np.float64],
    elbow: npt.NDArray[np.float64],
) -> None:
    """Finger tips at the height of the hand, and the palm above them."""
    axes = _axes(hands, elbow)
    for lift, tone in LIFTS:
        centres = _seen(hands, z + lift)
        window = canvas.window(centres, 0.13)
        if window is None:
            continue
        fingers, palm, v = _fingers(window, centres, grips, axes)
        light = (np.float32(tone) * (1 - 3 * v))[:, None] * _rgb((0.96, 1.0, 1.08))
        window.lay(light, fingers)
        if lift == LIFTS[-1][0]:
            window.lay(np.float32(0.8) * light, palm)


def pictures(world: World, index: int, ground: Floats, scale: int) -> npt.NDArray[np.uint8]:
    """The frames of trajectory ``index`` of the world, uint8 ``[T, 3, H, W]``.

    ``ground`` is the `empty_table` at ``scale`` times the picture's size.
    """
    frames = world.positions.shape[1]
    canvas = Canvas(np.repeat(ground[None], frames, 0))
    order = np.argsort(world.places[index, 0, :, 1])
    for k in order:
        if world.radii[index, k] > 0:
            _paint_object(
                canvas,
                world.places[index, :, k],
                world.turns[index, :, k],
                float(world.radii[index, k]),
                int(world.kinds[index, k]),
            )
    _paint_arm(canvas, world.hands[index], world.grips[index])
    h, w = ground.shape[1] // scale, ground.shape[2] // scale
    # Rows, then columns: adding slices is much faster than `mean` over two short axes.
    rows = canvas.pixels.reshape(frames, 3, h, scale, w * scale)
    tall = np.add.reduce([rows[:, :, :, i] for i in range(scale)])
    small = np.add.reduce([tall[..., i::scale] for i in range(scale)])
    return (_ramp(small / np.float32(scale**2)) * 255 + np.float32(0.5)).astype(np.uint8)
