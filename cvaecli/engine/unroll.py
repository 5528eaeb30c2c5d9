"""A training batch predicted step by step, fed as the teacher-forcing coin says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..config.schema import TeacherForcingConfig
from ..models.base import Features, State, Step, VideoCVAE, join_steps, slice_time, stack_steps
from .batches import Batch
from .recompute import recomputed

T = TypeVar("T")


class Noise(NamedTuple):
    """The standard normal noise of a training step, drawn before it.

    Attributes:
        z: one tensor ``[B, T - 1, *shape]`` a latent level.
        fed: what is added to the frame ``[B, C, H, W]`` that each step but the first is fed, times
            ``teacher_forcing.noise``; None where nothing is.
    """

    z: list[Tensor]
    fed: list[Tensor | None]


def draw_noise(
    model: VideoCVAE,
    frames: Tensor,
    forcing: TeacherForcingConfig | None,
    forced: Sequence[bool],
    generator: torch.Generator,
    rows: range,
    of: int,
) -> Noise:
    """The noise of the rows ``rows`` of a batch of ``of``: what others hold the rest changes nothing.

    Args:
        frames: of these rows, ``[len(rows), T, C, H, W]``.
        forcing, forced: as for ``unroll``.
        generator: on the frames' device.
    """
    T, size = frames.shape[1], frames.shape[2:]

    def draw(*shape: int) -> Tensor:
        whole = torch.randn(of, *shape, generator=generator, device=frames.device)
        return whole[rows.start : rows.stop]

    z = [draw(T - 1, *shape) for shape in model.noise_shapes((size[1], size[2]))]
    if forcing is None or model.parallel or not forcing.noise:
        return Noise(z, [None] * (len(forced) - 1))
    true = forcing.mode == "replace"
    return Noise(z, [None if is_forced and true else draw(*size) for is_forced in forced[1:]])


def unroll(
    model: VideoCVAE,
    batch: Batch,
    n_past: int,
    forcing: TeacherForcingConfig | None,
    forced: Sequence[bool],
    ratio: float | Tensor,
    drawn: Noise,
    told: int,
    kept_steps: int | None = None,
) -> Step:
    """The K = T - n_past predicted frames of a batch, and the past ones of a burn-in before them.

    Where every input is known, all steps go through the model at once.

    Args:
        batch: frames ``[B, T, C, H, W]`` and conditions ``[B, T, ...]``.
        forcing: None for models that feed nothing back.
        forced: for each of the K steps, whether its input is teacher-forced; the first step is fed the
            true past frame in any case.
        ratio: teacher-forcing ratio, the share of the true frame in a blend.
        drawn: the noise behind z and of the feedback, see ``draw_noise``.
        told: z of so many first rows comes from the posterior, of the others as in prediction from the
            prior: all or none, but for a model that ``mixes``.
        kept_steps: ``train.kept_steps``.
    """
    frames, condition, P, posterior = batch.frames, batch.condition, n_past, told > 0

    def run(function: Callable[..., T], *arguments: Any) -> T:
        return recomputed(model, function, *arguments) if kept_steps else function(*arguments)

    noise = [n[:, P - 1 :] for n in drawn.z]
    features = run(model.encode, condition[:, P:], frames[:told, P:] if posterior else None)
    given, state = model.burn_in(frames[:, :P], condition[:, :P], [n[:, : P - 1] for n in drawn.z])
    parts = [] if given is None else [given]
    if given is not None and not posterior:
        # On the prior there is no KL term, and so none for the steps between past frames either.
        parts = [given._replace(q=())]
    together = model.parallel or bool(forcing and all(forced) and forcing.mode == "replace")
    x, K = frames[:, P - 1], len(forced)
    for first in range(0, K, kept_steps or K):
        these = slice(first, min(first + (kept_steps or K), K))
        some, some_noise = slice_time(features, these), [n[:, these] for n in noise]
        true = frames[:, P - 1 + these.start : P + these.stop]  # those steps' inputs, and one more
        if together:
            steps, state = run(model.unroll, state, true[:, :-1], some, some_noise, posterior)
        else:
            assert forcing is not None
            feed = _Feed(forcing, ratio, forced[these.start + 1 :], drawn.fed[these])
            steps, state, x = run(_free_running, model, state, x, true, some, some_noise, feed, posterior)
        parts.append(steps)
    return join_steps(parts)


def _free_running(
    model: VideoCVAE,
    state: State,
    x: Tensor,
    true: Tensor,
    features: Features,
    noise: Sequence[Tensor],
    feed: _Feed,
    posterior: bool,
) -> tuple[Step, State, Tensor]:
    """K steps, one by one.

    Args:
        x: what the first one is fed.
        true: ``[B, K + 1, C, H, W]``, the true frames before each step and after the last.

    Returns:
        The steps, the state after them, and what the next step is fed.
    """
    steps = []
    for k in range(true.shape[1] - 1):
        step, state = model.step(state, x, slice_time(features, k), [n[:, k] for n in noise], posterior)
        steps.append(step)
        x = feed(k, step.x_hat.float(), true[:, k + 1])
    return stack_steps(steps), state, x


class _Feed:
    """The next step's input: the true frame, a blend of both, or the prediction.

    Args:
        forced: for each step from the second of a stretch on, whether its input is teacher-forced.
        noise: added to these inputs.
    """

    def __init__(
        self,
        forcing: TeacherForcingConfig,
        ratio: float | Tensor,
        forced: Sequence[bool],
        noise: Sequence[Tensor | None],
    ) -> None:
        self._forcing, self._ratio, self._forced, self._noise = forcing, ratio, forced, noise

    def __call__(self, k: int, x_hat: Tensor, x: Tensor) -> Tensor:
        """What the step after step ``k`` is fed; after the last of all, whatever."""
        if k == len(self._forced):
            return x_hat
        forcing, is_forced, noise = self._forcing, self._forced[k], self._noise[k]
        if is_forced and forcing.mode == "replace":
            return x
        if forcing.detach == "on" or (forcing.detach == "unforced" and not is_forced):
            x_hat = x_hat.detach()
        if noise is not None:
            x_hat = x_hat + forcing.noise * noise
        return self._ratio * x + (1 - self._ratio) * x_hat if is_forced else x_hat
