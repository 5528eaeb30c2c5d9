"""Labels from the pictures themselves, for what has no skeleton: edges, and the moving foreground.

Both are drawn dark on white from the small frames. Their thresholds are measured once over the whole film, so
that a label depends on its frame alone and does not flicker.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ..media.panels import Frame

Planes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Label = Callable[[Planes], Frame]

SAMPLES = 200
"""Thresholds and the median picture come from this many frames, spread over the film."""
STRONGEST = 0.95
"""Edges of this quantile of the gradients and above are black."""
FLAT = 8.0
"""No weaker gradient is black, in grey levels a pixel: a film without edges has none."""
FAINTEST = 0.25
"""Gradients below this share of the strongest are no edges."""
NOISE = 4.0
"""A pixel that differs from the median by this many times its usual difference is foreground."""
LEAST = 12.0
"""The least difference that counts as foreground, in grey levels of 255."""


def edges(frames: Planes) -> Label:
    """Edges: the gradient of brightness, relative to the strong ones of the film.

    Args:
        frames: uint8 ``[N, 3, H, W]``, RGB; may be a memory map.

    Returns:
        A function from a frame ``[3, H, W]`` to its label ``[H, W, 3]``.
    """
    gradients = np.stack([_gradient(frame) for frame in _sample(frames)])
    strong = max(float(np.quantile(gradients, STRONGEST)), FLAT)

    def label(frame: Planes) -> Frame:
        return _dark((_gradient(frame) / strong - FAINTEST) / (1 - FAINTEST))

    return label


def foreground(frames: Planes) -> Label:
    """The moving foreground: what differs from the film's median picture. For a still camera.

    Arguments and return value as in `edges`.
    """
    sample = _sample(frames).astype(np.float32)
    median = np.median(sample, axis=0)
    # The median over time is the noise, as long as a pixel shows the background most of the time
    noise = np.median(np.abs(sample - median).max(axis=1), axis=0)
    limit = np.maximum(NOISE * noise, LEAST)

    def label(frame: Planes) -> Frame:
        difference = np.abs(frame.astype(np.float32) - median).max(axis=0)
        return _dark(difference / limit - 0.5)

    return label


def _sample(frames: Planes) -> Planes:
    places = np.linspace(0, len(frames) - 1, min(SAMPLES, len(frames))).round().astype(int)
    sample: Planes = frames[places]
    return sample


def _gradient(frame: Planes) -> Floats:
    """The length of the gradient of brightness ``[H, W]`` by Sobel's filter, in grey levels a pixel."""
    grey = np.pad(frame.astype(np.float32).mean(axis=0), 1, mode="edge")
    rows = grey[:-2] + 2 * grey[1:-1] + grey[2:]
    columns = grey[:, :-2] + 2 * grey[:, 1:-1] + grey[:, 2:]
    across, down = (rows[:, 2:] - rows[:, :-2]) / 8, (columns[2:] - columns[:-2]) / 8
    length: Floats = np.hypot(across, down).astype(np.float32)
    return length


def _dark(ink: Floats) -> Frame:
    """Ink of 0..1 ``[H, W]`` as dark on white."""
    grey: Frame = np.rint(255 * (1 - np.clip(ink, 0, 1))).astype(np.uint8)
    return grey[..., None].repeat(3, axis=-1)
