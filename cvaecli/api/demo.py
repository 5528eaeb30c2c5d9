"""A trained model that is played with: one frame after the other, each with a condition chosen just then."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import metrics
from ..data.clip import Clip
from ..data.kinds import KINDS
from ..engine.batches import stacked
from ..engine.rollout import predict
from ..errors import UserError
from ..models.base import State
from ..reporter import Reporter, Silent
from ..seeding import stream
from ..synthetic.puppet import Puppet
from .loading import load_run_data, open_run

Bytes = npt.NDArray[np.uint8]

LONGEST_RECORDING = 2000
"""Frames that are kept for a GIF."""


class Stage:
    """A model with the state that the frames predicted so far have left. Its methods may be called from any
    thread.

    Args:
        run: see ``run.find``.
        overrides: of data.*, runtime.* and seed.

    Raises:
        UserError: no such run, or no clip with enough given frames.
    """

    def __init__(
        self,
        run: str | Path | None = None,
        overrides: Sequence[str] = (),
        *,
        reporter: Reporter | None = None,
    ) -> None:
        self._opened = open_run(run, overrides)
        config = self._opened.config
        data = load_run_data(self._opened, (), reporter or Silent())
        self._n_past = config.data.n_past
        self._clips: list[Clip] = [
            clip
            for split in ("val", "test", "train")
            for clip in data.splits.get(split, [])
            if clip.n_frames >= self._n_past < clip.n_steps
        ]
        if not self._clips:
            raise UserError(f"{data.source}: no clip has {self._n_past} given frames", "see cvae data check")
        self._built_in = config.data.root is None and config.data.kind == "dance"
        self._lock = threading.Lock()
        self._recorded: list[Bytes] | None = None
        self._state: State = ()
        self.restart(0, 0)

    @property
    def name(self) -> str:
        """The run's name."""
        return self._opened.run.name

    def describe(self) -> dict[str, Any]:
        """What the page needs to know: sizes, clips, and the ranges of condition vectors."""
        clip = self._clips[0]
        columns = [name for part in KINDS[self._opened.config.data.kind].columns.values() for name in part]
        pictures = clip.condition.ndim == 4
        rows = np.concatenate([each.condition[1:] for each in self._clips]) if not pictures else None
        if rows is not None and len(columns) != rows.shape[1]:
            columns = [f"condition {number}" for number in range(rows.shape[1])]
        return {
            "run": self.name,
            "model": self._opened.config.model_name,
            "height": clip.frames.shape[2],
            "width": clip.frames.shape[3],
            "n_past": self._n_past,
            "clips": [
                {"name": each.name, "steps": each.n_steps, "frames": each.n_frames} for each in self._clips
            ],
            "joints": self._built_in,
            "columns": []
            if rows is None
            else [
                {"name": name, "low": float(low), "high": float(high)}
                for name, low, high in zip(columns, rows.min(0), rows.max(0), strict=True)
            ],
        }

    def restart(self, clip: int, first: int, seed: int = 0) -> dict[str, Any]:
        """Go back to given frames.

        Args:
            clip: number of a clip.
            first: frame number of the first given frame.
            seed: of z.

        Returns:
            As ``step``, with the last given frame.

        Raises:
            UserError: there is no such clip or frame.
        """
        if not 0 <= clip < len(self._clips) or not 0 <= first <= self._clips[clip].n_frames - self._n_past:
            raise UserError(f"there is no frame {first} in clip {clip}")
        with self._lock:
            self._clip, last = self._clips[clip], first + self._n_past
            past = self._batch(self._clip.frames[first:last])
            given = self._batch(self._clip.condition[first:last])
            device = self._opened.device
            with torch.inference_mode(), device.autocast():
                self._state = self._opened.model.start(past, given)
            self._x = past[:, -1]
            self._puppet = self._make_puppet()
            self._draw(seed)
            return self._shown(self._clip.condition[last - 1], last - 1)

    def draw_again(self, seed: int) -> None:
        """Draw z again; it then stays as it is, so that only the condition changes the picture."""
        with self._lock:
            self._draw(seed)

    def step(
        self,
        t: int,
        joints: Mapping[str, tuple[float, float]] | None = None,
        vector: Sequence[float] | None = None,
    ) -> dict[str, Any]:
        """Predict the next frame.

        Args:
            t: take the clip's condition of this frame.
            joints: places of joints that were moved from there, in pixels; built-in dancer only.
            vector: a condition vector instead.

        Returns:
            ``frame`` and, if conditions are pictures, ``label``: uint8 ``[H, W, 3]``; else ``vector``.
            ``joints``: their places, if they are known. ``t``.

        Raises:
            UserError: there is no such frame, joint or vector.
        """
        if not 0 <= t < self._clip.n_steps:
            raise UserError(f"there is no condition for frame {t}")
        with self._lock:
            condition = self._chosen(t, joints, vector)
            device = self._opened.device
            with torch.inference_mode(), device.autocast():
                steps, self._state = predict(
                    self._opened.model, self._state, self._x, self._batch(condition[None]), self._noise
                )
            self._x = steps.x_hat[:, -1].float()
            shown = self._shown(condition, t, joints)
            if self._recorded is not None and len(self._recorded) < LONGEST_RECORDING:
                self._recorded.append(shown["frame"])
            return shown

    def record(self) -> None:
        """Keep the frames that are predicted from now on."""
        with self._lock:
            self._recorded = []

    def recorded(self) -> list[Bytes]:
        """The frames ``[H, W, 3]`` since ``record``, of which the first ``LONGEST_RECORDING``; ends it."""
        with self._lock:
            frames, self._recorded = self._recorded or [], None
        return frames

    # --- parts ------------------------------------------------------------------------------------

    def _batch(self, values: npt.NDArray[Any]) -> Tensor:
        """``[1, T, ...]`` on the device."""
        return stacked([values], self._opened.device.torch)

    def _draw(self, seed: int) -> None:
        size = (self._clip.frames.shape[2], self._clip.frames.shape[3])
        generator = stream(seed, "demo")
        shapes = self._opened.model.noise_shapes(size)
        device = self._opened.device.torch
        self._noise = [torch.randn(1, 1, *shape, generator=generator).to(device) for shape in shapes]

    def _make_puppet(self) -> Puppet | None:
        if not self._built_in:
            return None
        data = self._opened.config.data
        return Puppet(self._clip.name, self._clip.n_steps, data.height, data.width)

    def _chosen(
        self, t: int, joints: Mapping[str, tuple[float, float]] | None, vector: Sequence[float] | None
    ) -> npt.NDArray[Any]:
        clip = self._clip.condition
        if vector is not None:
            if clip.ndim != 2 or len(vector) != clip.shape[1]:
                raise UserError("this model has no condition vectors of that length")
            return np.asarray(vector, dtype=np.float32)
        if not joints:
            return np.asarray(clip[t])
        if self._puppet is None or not set(joints) <= set(self._puppet.joints(t)):
            raise UserError("the joints of this figure are not known")
        return self._puppet.label(t, joints)

    def _shown(
        self, condition: npt.NDArray[Any], t: int, moved: Mapping[str, tuple[float, float]] | None = None
    ) -> dict[str, Any]:
        frame = metrics.as_bytes(self._x[0]).movedim(0, -1).cpu().numpy()
        pictures = condition.ndim == 3
        joints = None if self._puppet is None else {**self._puppet.joints(t), **(moved or {})}
        return {
            "frame": frame,
            "label": np.moveaxis(condition, 0, -1) if pictures else None,
            "vector": None if pictures else [float(value) for value in condition],
            "joints": joints,
            "t": t,
        }
