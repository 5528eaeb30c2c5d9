"""The room of the dancer set: a camera, a light and a small ray caster for everything that does not move.

The axes are in metres: x to the right of the picture, y up from the floor, z away from the camera, which
stands at (0, ``CAMERA_HEIGHT``, 0) and looks along z. The room never changes, so it is cast once per size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Texture = Callable[[Array, Array], Array]  # (points [N, 3], normals [N, 3]) -> colours [N, 3] in 0..1

CAMERA_HEIGHT = 1.0
FOCAL = 1.45  # in picture heights
HORIZON = 0.43  # share of the picture's height above the horizon
HALF_WIDTH, CEILING, BACK = 4.0, 2.7, 7.0
ASPECT = 2.0  # the room is drawn for 2:1 pictures and stretched sideways for others


def project(points: Array, height: float, width: float) -> tuple[Array, Array]:
    """The places of points ``[..., 3]`` of the room in the picture.

    (0, 0) is the upper left corner of the picture, not the centre of a pixel. z must be above 0.

    Returns:
        Points ``[..., 2]`` (x, y) in pixels, and pixels per metre ``[...]`` there.
    """
    scale = FOCAL * height / points[..., 2]
    x = width / 2 + points[..., 0] * scale
    y = HORIZON * height - (points[..., 1] - CAMERA_HEIGHT) * scale
    return np.stack([x, y], axis=-1), scale


def light(x: Array, z: Array) -> Array:
    """Brightness (about 0.6..1.2) over the floor point (x, z): daylight from the left, and a lamp."""
    day = np.exp(-(((x + 1.6) / 2.6) ** 2) - ((z - 4.4) / 2.2) ** 2)
    lamp = np.exp(-(((x - 2.9) / 1.5) ** 2) - ((z - 6.2) / 1.5) ** 2)
    return 0.88 + 0.32 * day + 0.2 * lamp


def _noise(u: Array, seed: int) -> Array:
    """Noise in 0..1 as a function of whole numbers ``u``: an integer hash, the same on every machine."""
    h = u.astype(np.int64).astype(np.uint64) * np.uint64(2654435761) + np.uint64(seed * 40503)
    h = (h ^ (h >> np.uint64(15))) * np.uint64(2246822519)
    h = (h ^ (h >> np.uint64(13))) * np.uint64(3266489917)
    h ^= h >> np.uint64(16)
    return (h % np.uint64(1024)).astype(np.float64) / 1023


def _rgb(*hexes: str) -> Array:
    return np.array([[int(h[i : i + 2], 16) / 255 for i in (0, 2, 4)] for h in hexes])


def _in(u: Array, low: float, high: float) -> npt.NDArray[np.bool_]:
    return (u >= low) & (u < high)


def _floor(p: Array, n: Array) -> Array:
    """Oak boards along z, a rug with a border, and sunlight from the window."""
    x, z = p[:, 0], p[:, 2]
    board = np.floor(x / 0.24)
    plank = np.floor((z + 1.7 * _noise(board + 50, 3)) / 1.6) + 100 * board
    grain = 0.04 * np.sin(x * 60 + 5 * np.sin(z * 2 + board))
    tint = 0.84 + 0.22 * _noise(plank + 9000, 5) + grain
    colour: Array = _rgb("e3c196") * tint[:, None]
    colour[np.abs(x / 0.24 - board - 0.5) > 0.47] *= 0.72
    u, v = np.abs(x - 0.1) / 1.75, np.abs(z - 4.3) / 1.05
    edge = np.maximum(u, v)
    weave = 0.95 + 0.05 * np.sign(np.sin(x * 22) * np.sin(z * 22))
    diamond = ((u + v) % 0.5 < 0.22) & (edge < 0.76)
    for mask, tone in (
        (edge < 1, "8fb0ad"),
        (edge < 0.93, "efe6d2"),
        (edge < 0.83, "a9c4bf"),
        (diamond, "dfe3d3"),
    ):
        colour[mask] = (_rgb(tone) * weave[:, None])[mask]
    # Sun through four panes: a sheared grid, brighter and warmer than the rest.
    s = x + 0.55 * (z - 4.2) + 1.55
    sun = _in(s, -0.62, 0.62) & _in(z, 3.45, 5.0) & (np.abs(s) > 0.06) & (np.abs(z - 4.2) > 0.07)
    colour[sun] = colour[sun] * np.array([1.2, 1.15, 1.0])
    return colour


def _wall(u: Array, y: Array) -> Array:
    """Painted plaster above a panelled dado, a rail and a skirting board. ``u`` runs along the wall."""
    colour = _rgb("dbe5df") * (0.97 + 0.05 * _noise(np.floor(u * 9) * 31 + np.floor(y * 9), 7))[:, None]
    dado = y < 0.82
    colour[dado] = _rgb("ece7da")
    panel = np.abs(u / 0.62 - np.floor(u / 0.62) - 0.5)
    colour[dado & _in(y, 0.22, 0.7) & _in(panel, 0.36, 0.4)] *= 0.82
    colour[dado & _in(panel, -1, 0.4) & (_in(y, 0.2, 0.24) | _in(y, 0.68, 0.72))] *= 0.84
    colour[_in(y, 0.78, 0.85)] = _rgb("fbf7ec")
    colour[y < 0.13] = _rgb("a98158")
    colour[y > CEILING - 0.12] = _rgb("f7f3e8")
    return colour


def _window(colour: Array, u: Array, y: Array, left: float, right: float) -> Array:
    """Paint a window of four panes, with sky and garden, onto a wall. It emits light: call this after
    lighting."""
    low, high = 1.0, 2.25
    colour[_in(u, left - 0.1, right + 0.1) & _in(y, low - 0.12, high + 0.1)] = _rgb("fffaf0")
    pane = _in(u, left, right) & _in(y, low, high)
    hedge = 1.38 + 0.09 * np.sin(u * 5.0) + 0.05 * np.sin(u * 13.0)
    t = np.clip((y - low) / (high - low), 0, 1)[:, None]
    sky = _rgb("f1f7f7") * (1 - t) + _rgb("9cc7ea") * t
    colour[pane] = np.where((y < hedge)[:, None], _rgb("8fb573"), sky)[pane]
    bars = (np.abs(u - (left + right) / 2) < 0.045) | (np.abs(y - 1.68) < 0.04)
    colour[pane & bars] = _rgb("fffaf0")
    return colour


def _painting(colour: Array, u: Array, y: Array) -> Array:
    """A framed landscape."""
    colour[_in(u, -0.35, 1.25) & _in(y, 1.2, 2.2)] = _rgb("6b4a2f")
    colour[_in(u, -0.28, 1.18) & _in(y, 1.27, 2.13)] = _rgb("f4efe2")
    hills = 1.6 + 0.12 * np.sin(u * 4.2) + 0.05 * np.sin(u * 9)
    inside = _in(u, -0.17, 1.07) & _in(y, 1.37, 2.03)
    scene = np.where((y < hills)[:, None], _rgb("3f7f86"), _rgb("f0c98a"))
    scene = np.where((y < hills - 0.12)[:, None], _rgb("2d5568"), scene)
    scene = np.where(((u - 0.75) ** 2 + (y - 1.84) ** 2 < 0.011)[:, None], _rgb("e2703a"), scene)
    colour[inside] = scene[inside]
    return colour


def _books(p: Array, n: Array) -> Array:
    """The front of a bookcase: shelves of book spines in many colours."""
    x, y = p[:, 0], p[:, 1]
    shelf = np.floor(y / 0.36)
    book = np.floor(x / 0.085) + 37 * shelf
    spines = _rgb("a8493c", "d9a441", "3f6f7d", "ede0c4", "5d7a4a", "7a4b5e", "c87f4f", "48566e")
    colour = spines[(_noise(book + 7000, 11) * 7.99).astype(np.int64)]
    top = 0.2 + 0.12 * _noise(book + 7000, 13)
    level = y - 0.36 * shelf
    colour[level > top] = _rgb("5b432f")
    colour[(level < 0.045) | (n[:, 2] > -0.5) | (y > 2.1)] = _rgb("9c7a55")
    colour[(np.abs(x - 2.68) < 0.05) | (np.abs(x - 3.92) < 0.05)] = _rgb("9c7a55")
    return colour


def _plain(tone: str, stripe: float = 0.0, dark: float = 0.9) -> Texture:
    """One colour. With ``stripe``, upright stripes of that width in metres, every other one ``dark``."""

    def texture(p: Array, n: Array) -> Array:
        colour = np.repeat(_rgb(tone), len(p), axis=0)
        if stripe:
            colour[np.floor(p[:, 0] / stripe) % 2 == 0] *= dark
        return colour

    return texture


@dataclass(frozen=True)
class _Box:
    """An axis-aligned box, or with ``round`` the ellipsoid in it. ``front``: always nearer than the
    person."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    texture: Texture
    front: bool = False
    round: bool = False
    glow: bool = False


SOFA, CUSHION, WOOD, LEAF = (
    _plain("8fbab2", 0.5, 0.94),
    _plain("e0a33e"),
    _plain("8a6240"),
    _plain("4d7f4c", 0.07),
)
CHAIR, PILLAR = _plain("dd9257", 0.125, 0.93), _plain("fffaf0", 0.055, 0.88)
BOXES = (
    _Box((2.66, 0.0, 6.5), (3.94, 2.16, 7.0), _books),
    _Box((-0.7, 0.1, 6.05), (1.6, 0.5, 6.9), SOFA),
    _Box((-0.7, 0.1, 6.6), (1.6, 0.98, 6.95), SOFA),
    _Box((-0.95, 0.0, 6.0), (-0.68, 0.68, 6.95), SOFA),
    _Box((1.58, 0.0, 6.0), (1.85, 0.68, 6.95), SOFA),
    _Box((-0.55, 0.48, 6.35), (-0.1, 0.92, 6.6), CUSHION),
    _Box((1.0, 0.48, 6.35), (1.45, 0.92, 6.6), _plain("e9dcc5")),
    _Box((2.2, 0.0, 6.4), (2.26, 1.6, 6.46), _plain("4c4038")),
    _Box((1.98, 1.5, 6.2), (2.48, 1.95, 6.66), _plain("ffedbd"), glow=True),
    _Box((-3.75, 0.0, 6.2), (-3.3, 0.45, 6.65), _plain("b5694a")),
    _Box((-3.95, 0.4, 6.0), (-3.1, 1.2, 6.8), LEAF, round=True),
    _Box((-3.8, 0.8, 6.1), (-3.3, 1.65, 6.7), _plain("5f9657", 0.06), round=True),
    # Foreground: an armchair seen from behind, a fluted pillar.
    _Box((-1.22, 0.0, 2.1), (-0.72, 0.62, 2.2), CHAIR, front=True),
    _Box((-1.27, 0.0, 2.12), (-1.17, 0.46, 2.55), CHAIR, front=True),
    _Box((-0.77, 0.0, 2.12), (-0.67, 0.46, 2.55), CHAIR, front=True),
    _Box((-1.2, 0.5, 2.08), (-0.74, 0.7, 2.24), CHAIR, front=True, round=True),
    _Box((1.02, 0.0, 2.32), (1.18, 3.5, 2.5), PILLAR, front=True),
    _Box((0.97, 0.0, 2.28), (1.23, 0.14, 2.5), PILLAR, front=True),
)


def _hit(box: _Box, rays: Array) -> tuple[Array, Array]:
    """Depth ``[N]`` (inf for a miss) and normal ``[N, 3]`` where rays from the camera enter the box."""
    eye = np.array([0.0, CAMERA_HEIGHT, 0.0])
    low, high = np.array(box.low) - eye, np.array(box.high) - eye
    if box.round:
        centre, radius = (low + high) / 2, (high - low) / 2
        a, b, c = rays / radius, centre / radius, 0.0
        aa, ab = (a * a).sum(1), (a * b).sum(1)
        c = ab * ab - aa * ((b * b).sum() - 1)
        depth = np.where(c > 0, (ab - np.sqrt(np.maximum(c, 0))) / aa, np.inf)
        normal = (np.where(np.isfinite(depth), depth, 0)[:, None] * rays - centre) / radius
        return depth, normal / np.maximum(np.sqrt((normal**2).sum(1, keepdims=True)), 1e-9)
    with np.errstate(divide="ignore"):
        first, second = low / rays, high / rays
    enter, leave = np.minimum(first, second), np.maximum(first, second).min(1)
    axis, depth = enter.argmax(1), enter.max(1)
    normal = -np.sign(rays) * (axis[:, None] == np.arange(3))
    return np.where((depth < leave) & (depth > 0), depth, np.inf), normal


def _shell(rays: Array) -> tuple[Array, Array]:
    """Depth ``[N]`` and surface number ``[N]`` (0 floor, 1 ceiling, 2 side walls, 3 back wall)."""
    with np.errstate(divide="ignore"):
        floor = np.where(rays[:, 1] < 0, -CAMERA_HEIGHT / rays[:, 1], np.inf)
        top = np.where(rays[:, 1] > 0, (CEILING - CAMERA_HEIGHT) / rays[:, 1], np.inf)
        side = HALF_WIDTH / np.abs(rays[:, 0])
    depths = np.stack([floor, top, side, np.full(len(rays), BACK)])
    return depths.min(0), depths.argmin(0)


def _corners(p: Array) -> Array:
    """Ambient occlusion (0..1) ``[N]``: dark where floor, walls and furniture meet."""
    x, y, z = np.abs(p[:, 0]), p[:, 1], p[:, 2]
    gaps = [np.hypot(HALF_WIDTH - x, BACK - z), np.hypot(HALF_WIDTH - x, y), np.hypot(BACK - z, y)]
    gaps += [np.hypot(HALF_WIDTH - x, CEILING - y), np.hypot(BACK - z, CEILING - y)]
    shade = np.ones(len(p))
    for gap in gaps:
        shade *= 1 - 0.3 * np.exp(-gap / 0.3)
    for box in BOXES:
        if box.low[1] < 0.2:
            out = [np.maximum(np.maximum(box.low[i] - p[:, i], p[:, i] - box.high[i]), 0) for i in (0, 2)]
            shade *= 1 - 0.4 * np.exp(-np.hypot(*out) / 0.22) * (y < 0.01)
    return shade


def cast(height: int, width: int) -> tuple[Array, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """The empty room in ``height`` x ``width`` pixels.

    Returns:
        Colours ``[H, W, 3]`` in 0..1; a mask ``[H, W]`` of the furniture in the foreground, which hides a
        person behind it; a mask ``[H, W]`` of the floor, where a person's shadow falls.
    """
    v, u = np.mgrid[0:height, 0:width] + 0.5
    slope = np.stack([(u / width - 0.5) * ASPECT, HORIZON - v / height, np.full(u.shape, FOCAL)], axis=-1)
    rays = slope.reshape(-1, 3) / FOCAL
    depth, part = _shell(rays)
    p = rays * depth[:, None] + np.array([0.0, CAMERA_HEIGHT, 0.0])
    n = np.zeros_like(p)
    x, y, z = p.T
    painted = np.stack(
        [_floor(p, n), np.repeat(_rgb("f4f0e6"), len(p), 0), _wall(z, y), _painting(_wall(x, y), x, y)]
    )
    colour = painted[part, np.arange(len(p))]
    glow = np.zeros(len(p), dtype=bool)
    front = glow.copy()
    for box in BOXES:
        near, normal = _hit(box, rays)
        seen = near < depth
        depth = np.where(seen, near, depth)
        p[seen] = rays[seen] * near[seen, None] + np.array([0.0, CAMERA_HEIGHT, 0.0])
        colour[seen] = box.texture(p[seen], normal[seen])
        # Daylight comes from the upper left and a little from the camera's side.
        facing = normal[seen] @ np.array([-0.35, 0.45, -0.3])
        colour[seen] *= (0.82 + 0.5 * facing)[:, None]
        part[seen], glow[seen], front[seen] = 4, box.glow, box.front
    lit = colour * (light(p[:, 0], p[:, 2]) * _corners(p))[:, None]
    lit[part == 2] *= np.where(p[part == 2, :1] < 0, 0.86, 0.97)
    back = part == 3
    lit[back] = _window(lit[back], p[back, 0], p[back, 1], -2.75, -1.15)
    lit[glow] = colour[glow] * 1.15
    shape = (height, width)
    return np.clip(lit, 0, 1).reshape(*shape, 3), front.reshape(shape), (part == 0).reshape(shape)
