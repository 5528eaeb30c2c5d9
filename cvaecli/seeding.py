"""Random numbers as functions of their purpose, not of the state of a shared generator.

A stream is named by the run's seed, a purpose and a few integers (an epoch, a clip, a frame). That makes
resuming exact, and chunks, batches and devices of any number agree by construction.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def stream(seed: int, purpose: str, *index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A new generator for one purpose, e.g. ``stream(seed, "order", epoch)``."""
    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *index]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(words[0] >> np.uint64(1)))


def frame_noise(
    seed: int, clips: Sequence[str], frames: range, shapes: Sequence[tuple[int, ...]], sample: int = 0
) -> list[Tensor]:
    """Standard normal noise of a rollout, a function of (seed, sample, clip, frame, level).

    Args:
        clips: one clip name per batch row.
        frames: the frame numbers.
        shapes: shape of one frame's noise per latent level.

    Returns:
        One tensor ``[B, K, *shape]`` per level, float32 on the CPU.
    """
    return [
        torch.stack(
            [
                torch.stack([_one(seed, sample, clip, frame, level, shape) for frame in frames])
                for clip in clips
            ]
        )
        for level, shape in enumerate(shapes)
    ]


def _one(seed: int, sample: int, clip: str, frame: int, level: int, shape: tuple[int, ...]) -> Tensor:
    generator = stream(seed, "rollout", sample, zlib.crc32(clip.encode()), frame, level)
    return torch.randn(shape, generator=generator)
