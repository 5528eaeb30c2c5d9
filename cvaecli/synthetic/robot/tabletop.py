"""The table without the objects and the arm."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

RAIL = 0.05
"""Width of the rails around the mat, in table widths."""


def enlarged_table(height: int, width: int) -> tuple[npt.NDArray[np.float32], int]:
    """The `empty_table` in the size in which pictures of ``height x width`` are drawn, and how many times
    larger that is."""
    scale = 3 if min(height, width) < 48 else 2
    return empty_table(height * scale, width * scale), scale


def empty_table(h: int, w: int) -> npt.NDArray[np.float32]:
    """The empty table ``[3, h, w]``, 0..1: a felt mat in a frame of beech, darker far from the light."""
    y, x = np.mgrid[:h, :w].astype(np.float64)
    x, y = (x + 0.5) / w, (y + 0.5) / h
    rng = np.random.default_rng(7)
    felt = 0.03 * _cloud(rng, h, w, 9) + 0.035 * _cloud(rng, h, w, 28)
    weave = 0.012 * np.sin(2 * np.pi * 21 * (x + y)) * np.sin(2 * np.pi * 21 * (x - y))
    mat = np.array([0.40, 0.47, 0.45]) * (1 + felt + weave)[..., None]
    line = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y))
    grid = np.abs((x * 4) % 1 - 0.5) > 0.485
    grid |= np.abs((y * 4) % 1 - 0.5) > 0.485
    mat[grid] += 0.05
    horizontal = np.minimum(y, 1 - y) < np.minimum(x, 1 - x)
    along, across = np.where(horizontal, x, y), np.where(horizontal, y, x)
    grain = np.sin(2 * np.pi * (across * 46 + 0.7 * np.sin(along * 9) + 0.35 * np.sin(along * 23)))
    wood = np.array([0.66, 0.45, 0.26]) * (1 + 0.10 * grain + 0.10 * _cloud(rng, h, w, 14))[..., None]
    depth = np.clip((RAIL - line) * min(h, w) + 0.5, 0, 1)[..., None]
    lit = np.where(horizontal, np.where(y < 0.5, -0.12, 0.16), np.where(x < 0.5, -0.08, 0.12))
    colour = mat * (1 - depth) + wood * (1 + lit[..., None] * (line / RAIL)[..., None]) * depth
    # The upper and the left rail cast a shadow on the mat.
    inner = np.minimum((x - RAIL) / 0.05, (y - RAIL) / 0.07)
    colour *= np.where(depth > 0.5, 1, (0.72 + 0.28 * np.clip(inner, 0, 1))[..., None])
    fall = 1.16 - 0.42 * ((x - 0.3) ** 2 + (y - 0.25) ** 2)
    lit_colour = np.clip(colour * fall[..., None] * np.array([1.03, 1.0, 0.95]), 0, 1)
    return np.ascontiguousarray(lit_colour.transpose(2, 0, 1), np.float32)


def _cloud(rng: np.random.Generator, h: int, w: int, cells: int) -> npt.NDArray[np.float64]:
    """Smooth noise ``[h, w]`` in about -1..1 with ``cells`` cells across, the same at every picture size."""
    knots = rng.uniform(-1, 1, (cells + 1, cells + 1))
    rows, columns = (np.arange(n) + 0.5 for n in (h, w))
    parts = []
    for at, n in ((rows, h), (columns, w)):
        t = at / n * cells
        i = t.astype(int)
        f = t - i
        parts.append((i, f * f * (3 - 2 * f)))
    (i, f), (j, g) = parts
    f, g = f[:, None], g[None]
    top = knots[i][:, j] * (1 - g) + knots[i][:, j + 1] * g
    low = knots[i + 1][:, j] * (1 - g) + knots[i + 1][:, j + 1] * g
    cloud: npt.NDArray[np.float64] = top * (1 - f) + low * f
    return cloud
