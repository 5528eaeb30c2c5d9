"""Training windows that start from the model's own rollouts, so that they meet the errors of a late step.

A window of a few frames, begun from a true frame, never shows the model what hundreds of its own predictions
have made of a picture. Related: DAgger (Ross et al. 2011), Data as Demonstrator (Venkatraman et al. 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..config.schema import RunConfig
from ..data.clip import Clip
from ..metrics import as_bytes
from ..models.base import VideoCVAE
from ..seeding import stream
from .batches import stacked, to_float
from .device import Device
from .evaluate import neighbours
from .prefetch import to_device
from .rollout import prior_noise, rollout

LENGTH = 630
"""Most frames of one rollout. Longer clips have several, each from its own true frames."""


class RolloutStarts:
    """Free rollouts of the training clips, and which rows of a batch start from them.

    Args:
        clips: the training clips.
        config: ``teacher_forcing.rollout_starts`` is the share of rows.
    """

    def __init__(self, clips: Sequence[Clip], config: RunConfig, device: Device) -> None:
        self._config, self._device, self._n_past = config, device, config.data.n_past
        self._share = config.teacher_forcing.rollout_starts if config.teacher_forcing else 0.0
        self._segments = [segment(clip, at) for clip in clips for at in range(0, clip.n_frames, LENGTH)]
        self._first = torch.tensor([0, *np.cumsum([clip.n_frames for clip in clips])])
        self._frames: Tensor | None = None  # uint8 [N, C, H, W], all clips one after the other

    @property
    def wanted(self) -> bool:
        """Whether any row ever starts from a rollout."""
        return self._share > 0

    def renew(self, model: VideoCVAE, epoch: int, between: Callable[[], None]) -> None:
        """Predict all training clips, each from its first frames, with new noise in every epoch.

        Args:
            between: called between pieces; what it raises ends the rollouts and leaves the old ones.
        """
        was_training, averages = model.training, self._config.eval.average_flips
        model.eval()
        model.average_over_flips(False)  # how a run is scored must not change its training
        try:
            ready, made = self._device.for_inference(model), []
            for group in neighbours(self._segments, lambda clip: clip.n_frames, self._config.eval.batch_size):
                made += self._predicted(ready, group, epoch, between)
        finally:
            model.train(was_training)
            model.average_over_flips(averages)
        self._frames = torch.cat(made)

    def _predicted(
        self, model: VideoCVAE, group: Sequence[Clip], epoch: int, between: Callable[[], None]
    ) -> list[Tensor]:
        """A rollout of each clip of a group, uint8 ``[T, C, H, W]``: the given frames, then predictions."""
        P, T, chunk = self._n_past, group[0].n_frames, self._config.eval.chunk

        def load(part: str, first: int, last: int) -> Tensor:
            return stacked([getattr(clip, part)[first:last] for clip in group], self._device.torch)

        past, names = load("frames", 0, P), [clip.name for clip in group]
        noise = prior_noise(
            model,
            names,
            (past.shape[-2], past.shape[-1]),
            prior="sample",
            seed=self._config.seed,
            n_past=P,
            sample=epoch,
        )
        pieces = (load("condition", k, min(k + chunk, T)) for k in range(P, T, chunk))
        parts = [as_bytes(past).cpu()]
        for piece in rollout(model, past, load("condition", 0, P), pieces, noise, self._device):
            parts.append(as_bytes(piece).cpu())
            between()
        return list(torch.cat(parts, 1))

    def first_input(
        self,
        clip: Tensor,
        frame: Tensor,
        frames: Tensor,
        step: int,
        *,
        epoch: int,
        rows: Sequence[int] | None = None,
    ) -> Tensor:
        """What the first predicted step of each row is fed.

        Args:
            clip, frame: the rows' clips ``[B]`` and frame numbers ``[B, T]``.
            frames: their true frames ``[B, T, C, H, W]``.
            rows: the rows' numbers in the batch if they are not the whole batch.

        Returns:
            ``[B, C, H, W]``: the last given frame or, in a share of the rows, the rollout's frame before the
            first predicted one.
        """
        true = frames[:, self._n_past - 1]
        if self._frames is None:
            return true
        generator = stream(self._config.seed, "rollout starts", epoch, step)
        coins = torch.rand(self._config.train.batch_size, generator=generator)
        chosen = (coins if rows is None else coins[list(rows)]) < self._share
        target = frame[:, self._n_past]
        chosen &= target > 0  # no frame comes before the clip's first
        before = self._first[clip] + (target - 1).clamp(min=0)
        own = to_float(to_device(self._frames[before], true.device))
        return torch.where(to_device(chosen, true.device)[:, None, None, None], own, true)

    def state_dict(self) -> dict[str, Tensor]:
        """The rollouts in use, if there are any."""
        return {} if self._frames is None else {"rollouts": self._frames}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from ``state_dict()``."""
        self._frames = state.get("rollouts")


def segment(clip: Clip, first: int) -> Clip:
    """The part of a clip that a rollout from frame ``first`` covers."""
    last = min(first + LENGTH, clip.n_frames)
    return Clip(f"{clip.name} from {first}", clip.frames[first:last], clip.condition[first:last])
