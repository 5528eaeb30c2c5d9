"""The speed of the tool against the plain path.

The two take turns: a training step (or a piece of a rollout) of one, then of the other, and so on, so that
other load on the machine slows both. Each runs in its own process and waits while the other works, so that
the tool's process-wide settings (allocator, kernels) do not help the plain path. Prints a Markdown table.
Cases:

  pose-forced   course architecture, batch 2 x window 16, 64x32: training, teacher-forced
  pose-free     the same, free-running
  pose-rollout  prediction of one clip
  pose-clips    five clips in one batch against one clip at a time
  robot         configs/robot.yaml, 24 x 12 frames of 64x64: training, teacher-forced

Examples: python benchmarks/compare_speed.py --threads 2
          python benchmarks/compare_speed.py robot train.batch_size=2 --steps 3
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import NamedTuple

import plain
import plain_training
import tools
import torch

from cvaecli.api.benchmark import clip_rollout, first_epoch, new_trainer
from cvaecli.api.loading import build_model, load_data
from cvaecli.config.loading import load
from cvaecli.config.schema import RunConfig
from cvaecli.data.clip import Clip
from cvaecli.engine.batches import Sampler, to_float
from cvaecli.engine.device import prepare
from cvaecli.engine.rollout import prior_noise
from cvaecli.models.base import VideoCVAE
from cvaecli.reporter import Silent

WARM_UP = 2  # turns of each side before the timed ones
LIFETIME = 500  # training steps that the warm-up's cost is spread over


class Case(NamedTuple):
    """A measurement: a config with overrides; number of ``clips`` of a rollout, 0 for training."""

    config: str
    overrides: tuple[str, ...]
    clips: int
    target: float


COURSE = ("train.batch_size=2", "train.window=16")
CASES = {
    "pose-forced": Case("cyclical", (*COURSE, "teacher_forcing.ratio=1"), 0, 5.0),
    "pose-free": Case("cyclical", (*COURSE, "teacher_forcing.ratio=0"), 0, 3.0),
    "pose-rollout": Case("cyclical", (), 1, 3.5),
    "pose-clips": Case("cyclical", (), 5, 5.0),
    "robot": Case("robot", ("train.batch_size=24", "train.ema=null"), 0, 3.0),
}


# --- the two sides, each in its process ---------------------------------------------------------------


def fast_turns(config: RunConfig, clips: int, steps: int) -> Iterator[None]:
    """The tool: each turn is one training step, or one piece of a rollout."""
    device = prepare(config.runtime)
    data = load_data(config, ("train", "val"), Silent())
    trainer = new_trainer(config, steps, data, device)
    work: Iterator[object]
    if clips:
        model, clip = device.for_inference(trainer.trained.eval()), data.splits["val"][0]
        work = clip_rollout(model, clip, (steps + WARM_UP) * config.eval.chunk, config, device, clips)
    else:
        work = trainer.events()
    yield
    for _ in work:
        device.synchronize()
        yield


def plain_turns(config: RunConfig, clips: int, steps: int) -> Iterator[None]:
    """The plain path: the same; clips one at a time."""
    if config.runtime.threads is not None:
        torch.set_num_threads(config.runtime.threads)
    name, cuda = config.runtime.device, torch.cuda.is_available()
    device = torch.device(name if name != "auto" else "cuda" if cuda else "cpu")
    torch.backends.cudnn.allow_tf32 = False  # as in the tool: fp32 means fp32
    data = load_data(config, ("train", "val"), Silent())
    train = data.splits["train"]
    model = build_model(config, train[0].condition.shape[1:])
    work: Iterator[object]
    if clips:
        work = plain_pieces(model.to(device).eval(), data.splits["val"][0], config, device)
    else:
        longer = first_epoch(config, steps)
        sampler = Sampler.of(longer, type(model), train)
        trainer = plain_training.PlainTrainer(model, longer, device, train, sampler)
        work = iter(trainer.step, {})
    yield
    for _ in work:
        if cuda:
            torch.cuda.synchronize()
        yield


def plain_pieces(
    model: VideoCVAE, clip: Clip, config: RunConfig, device: torch.device
) -> Iterator[list[torch.Tensor]]:
    """An endless rollout with the tool's number of frames per piece; its conditions are repeated."""
    P, size = config.data.n_past, (clip.frames.shape[2], clip.frames.shape[3])

    def load_frames(values: object) -> torch.Tensor:
        return to_float(torch.as_tensor(values).to(device))[None]

    def conditions() -> Iterator[torch.Tensor]:
        while True:
            for condition in clip.condition[P:]:
                yield load_frames(condition.copy())

    noise = prior_noise(model, [clip.name], size, prior="sample", seed=config.seed, n_past=P)
    past = load_frames(clip.frames[:P].copy()), load_frames(clip.condition[:P].copy())
    frames = plain.rollout(model, *past, conditions(), noise)
    while True:
        yield [next(frames) for _ in range(config.eval.chunk)]


SIDES = {"plain": plain_turns, "fast": fast_turns}


def serve(pipe: Connection, side: str, config: RunConfig, clips: int, steps: int) -> None:
    """Take a turn on each request and send back the seconds it took."""
    turns = SIDES[side](config, clips, steps)
    next(turns)
    pipe.send(0.0)
    while pipe.recv():
        began = time.perf_counter()
        next(turns)
        pipe.send(time.perf_counter() - began)


# --- in turn ------------------------------------------------------------------------------------------


def in_turn(config: RunConfig, clips: int, steps: int) -> dict[str, list[float]]:
    """Seconds of every turn of both sides, warm-up first."""
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for side in SIDES:
        pipes[side], theirs = spawn.Pipe()
        process = spawn.Process(target=serve, args=(theirs, side, config, clips, steps), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
        pipes[side].recv()
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(WARM_UP + steps):
        for side, pipe in pipes.items():
            pipe.send(True)
            times[side].append(pipe.recv())
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(False)
        process.join()
    return times


def summary(times: list[float], lifetime: float) -> tuple[float, float]:
    """Seconds per turn: the median of the timed ones, plus the extra time of the warm-up divided by
    ``lifetime`` turns. Also returns that extra time."""
    median = statistics.median(times[WARM_UP:])
    extra = max(sum(times[:WARM_UP]) - WARM_UP * median, 0.0)
    return median + extra / lifetime, extra


def measure(name: str, case: Case, arguments: list[str], steps: int, frames: int) -> list[str]:
    """A row of the table."""
    config = load(case.config, [*case.overrides, *arguments])
    if case.clips:
        lifetime, steps = frames / config.eval.chunk, -(-frames // config.eval.chunk)
        per_turn = {"plain": config.eval.chunk, "fast": config.eval.chunk * case.clips}
    else:
        lifetime = LIFETIME
        per_turn = dict.fromkeys(SIDES, config.train.batch_size * (config.train.window - config.data.n_past))
    times = in_turn(config, case.clips, steps)
    each = {side: summary(times[side], lifetime) for side in SIDES}
    speed = {side: per_turn[side] / each[side][0] for side in SIDES}
    factor = per_turn["fast"] / per_turn["plain"]
    pairs = zip(times["plain"][WARM_UP:], times["fast"][WARM_UP:], strict=True)
    ratios = [factor * one / other for one, other in pairs]
    return [
        name,
        f"{speed['plain']:.2f}",
        f"{speed['fast']:.2f}",
        f"**{speed['fast'] / speed['plain']:.2f}**",
        f"{min(ratios):.2f} to {max(ratios):.2f}",
        f"{case.target:g}",
        f"{each['plain'][1]:.1f} / {each['fast'][1]:.1f}",
        f"{frames / speed['fast']:.1f}" if case.clips else "",
    ]


def main() -> None:
    """Measure the named cases, or all."""
    parser = tools.parser(__doc__, config=None)
    parser.add_argument("--steps", type=int, default=10, help="training steps of each side")
    parser.add_argument("--frames", type=int, default=629, help="predicted frames of a rollout")
    arguments = parser.parse_intermixed_args()
    names = [word for word in arguments.words if "=" not in word] or list(CASES)
    if unknown := set(names) - set(CASES):
        sys.exit(f"{', '.join(unknown)}: not a case; there are {', '.join(CASES)}")
    columns = ["case", "plain frames/s", "tool frames/s", "ratio", "of single turns", "target"]
    columns += ["warm-up s, plain / tool", f"{arguments.frames} frames, tool, s"]
    given = tools.overrides(arguments)
    rows = [measure(name, CASES[name], given, arguments.steps, arguments.frames) for name in names]
    tools.markdown(columns, rows)
    device = prepare(load(CASES[names[0]].config, given).runtime)
    print(f"\n{device.name}; tool in {device.precision}, plain in fp32; torch {torch.__version__}")


if __name__ == "__main__":
    tools.command(main)
