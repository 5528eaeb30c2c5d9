"""The first half hour on a GPU: everything that only a GPU can decide, in one command.

Each check runs in its own process, so that none can stop the others: not by an exception, a crash, or by
never ending. At the end stand a table of what passed and the lines for docs/performance.md. The exit status
is 1 if a check failed. Without a GPU the checks that need one are left out, and the others run tiny models:
that they run is what counts there, not how fast.

Examples: python benchmarks/gpu_check.py
          python benchmarks/gpu_check.py --checks clock,graphs,coins
          python benchmarks/gpu_check.py data.root=DIR      (overrides are for the configs of the pose family)
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import batch_size
import compare_numbers
import tools
import torch

import cvaecli
from cvaecli.api.benchmark import new_trainer
from cvaecli.api.loading import load_data
from cvaecli.checkpoint import load as load_checkpoint
from cvaecli.config.loading import load
from cvaecli.config.schema import RunConfig
from cvaecli.engine import batches
from cvaecli.engine.device import Device, prepare, unusable_gpu
from cvaecli.engine.events import StepEvent
from cvaecli.engine.fit import Trainer
from cvaecli.engine.graph import WARM_UP, Replayed
from cvaecli.reporter import Silent
from cvaecli.run import describe_environment, read_rows

FAMILIES = ("pose", "reference", "robot", "quickstart-robot")
SMALL = {
    "pose": "frame_dim=8 label_dim=2 z_dim=4 fusion_dim=8",
    "reference": "widths=[32,32] encoder_blocks=[0,1] decoder_blocks=[0]",
    "robot": "width=4 g_dim=8 z_dim=4 rnn_size=8",
    "quickstart-robot": "widths=[32,32] encoder_blocks=[0,1] decoder_blocks=[0]",
}
"""What makes the models tiny where there is no GPU. 32 channels are the fewest for Muon."""
STEPS = 4 * (WARM_UP + 1)
SECONDS = 600.0  # after which a check counts as failed
FRAMES = 629


class Found(NamedTuple):
    """What a check found.

    Attributes:
        passed: None if it was left out.
        summary: one line for the table.
        lines: for docs/performance.md.
    """

    passed: bool | None
    summary: str
    lines: Sequence[str] = ()


class LeftOutError(Exception):
    """A check needs something that this machine does not have."""


def need(gpus: int) -> None:
    """Leave the check out if there are fewer GPUs."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < gpus:
        raise LeftOutError(f"needs {gpus} GPU{'s' * (gpus > 1)}, there are {found}")


def settings(name: str, given: Sequence[str], *own: str) -> RunConfig:
    """A built-in config in fp32 with CUDA graphs, tiny where there is no GPU."""
    tiny: list[str] = []
    if not torch.cuda.is_available():
        window = min(load(name).train.window, 4)
        tiny = [*(f"model.{size}" for size in SMALL[name].split()), "runtime.threads=1"]
        tiny += ["train.batch_size=2", f"train.window={window}"]
    mine = [] if "robot" in name else given
    usual = ["runtime.precision=fp32", "runtime.graphs=true", "train.log_every=1"]
    return load(name, [*usual, *tiny, *mine, *own])


def trainer_of(config: RunConfig, steps: int, device: Device | None = None) -> Trainer:
    """The trainer of a new run with at least ``steps`` steps in its first epoch."""
    device = device or prepare(config.runtime)
    return new_trainer(config, steps, load_data(config, ("train", "val"), Silent()), device)


class Trained(NamedTuple):
    """Some steps of a training."""

    losses: list[float]
    weights: torch.Tensor  # all of them, float64 on the host
    recordings: int
    warned: list[str]


def trained(config: RunConfig, steps: int = STEPS) -> Trained:
    """Train a new run for some steps."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer = trainer_of(config, steps)
        events = trainer.events()
        losses = [loss(event) for event in itertools.islice(events, steps)]
        update = trainer._update
        recordings = len(update._recordings) if isinstance(update, Replayed) else 0
    weights = torch.cat([p.detach().cpu().double().flatten() for p in trainer.model.parameters()])
    warned = [str(one.message) for one in told]
    return Trained(losses, weights, recordings, warned)


def loss(event: object) -> float:
    """The loss of a step that reports."""
    assert isinstance(event, StepEvent) and event.terms is not None
    return event.terms["loss"]


def furthest(one: Trained, other: Trained) -> tuple[float, float]:
    """Largest difference of the losses, and of the weights."""
    losses = max(abs(a - b) for a, b in zip(one.losses, other.losses, strict=True))
    return losses, float((one.weights - other.weights).abs().max())


# --- the checks ---------------------------------------------------------------------------------------


def versions(given: Sequence[str]) -> Found:
    """What the numbers belong to."""
    device = prepare(load("pose").runtime)
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    print(f"{device.name}, {device.precision}; cvae {describe_environment()['versions']['cvae']}")
    if device.torch.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        subprocess.run(query, check=False)
    reason = unusable_gpu()
    return Found(not reason, reason or device.name)


def gpu_tests(given: Sequence[str]) -> Found:
    """The test suite's GPU tests."""
    need(1)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0", "-rs"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    print(done.stdout)
    return Found(done.returncode == 0, (done.stdout.strip().splitlines() or ["no output"])[-1])


def clock(given: Sequence[str]) -> Found:
    """The seconds that a training counts, against the wall's."""
    config = settings("pose", given, "train.log_every=10")
    trainer = trainer_of(config, 40)
    events = trainer.events()
    for _ in itertools.islice(events, 10):
        pass
    trainer.device.synchronize()
    before, began = trainer.seconds, time.perf_counter()
    for _ in itertools.islice(events, 20):  # until a report
        pass
    trainer.device.synchronize()
    counted, wall = trainer.seconds - before, time.perf_counter() - began
    return Found(0.9 < counted / wall < 1.02, f"{counted:.2f} s counted of {wall:.2f} s")


def graphs(given: Sequence[str]) -> Found:
    """Replayed steps against plain ones, and these against themselves, which shows how far rounding goes."""
    need(1)
    good, lines = True, []
    for name in FAMILIES:
        made = {
            key: trained(settings(name, given, f"runtime.graphs={wanted}"))
            for key, wanted in (("plain", "false"), ("again", "false"), ("graphs", "true"))
        }
        rounding, difference = furthest(made["again"], made["plain"]), furthest(made["graphs"], made["plain"])
        fine = all(d <= 10 * r + 1e-6 for d, r in zip(difference, rounding, strict=True))
        one = made["graphs"]
        good = good and fine and one.recordings > 0 and not one.warned
        print(f"{name}: {one.recordings} recordings, difference in loss and weights {difference}, ", end="")
        print(f"of plain from plain {rounding}; warnings: {one.warned}", flush=True)
        for wanted in ("false", "true"):
            overrides = ["runtime.precision=auto", "train.log_every=10", f"runtime.graphs={wanted}"]
            found = cvaecli.bench(settings(name, given, *overrides), steps=100, frames=64)
            speed, reserved = found["train_frames_per_s"], found["reserved_memory_gb"]
            lines.append(f"{name}, graphs {wanted}: {speed:.1f} frames/s, {reserved} GB reserved")
    return Found(good, "equal within rounding" if good else "not equal, or not recorded", lines)


def prefetch(given: Sequence[str]) -> Found:
    """Recording while the prefetch thread allocates pinned memory, five times."""
    need(1)
    batches.RESIDENT_SHARE = 0.0
    runs = [trained(settings("pose", given, f"seed={seed}")) for seed in range(5)]
    good = all(one.recordings and not one.warned for one in runs)
    warned = [line for one in runs for line in one.warned]
    return Found(good, f"recordings {[one.recordings for one in runs]}, warnings {warned}")


def refused(given: Sequence[str]) -> Found:
    """What a recording that fails leaves behind."""
    need(1)
    device = prepare(settings("pose", given).runtime)
    weight = torch.randn(4096, 4096, device=device.torch, requires_grad=True)

    def look(x: torch.Tensor) -> torch.Tensor:
        y = (x @ weight).relu() @ weight
        if float(y.sum().detach()) == 0.5:  # waits for the device, which a recording refuses
            raise AssertionError
        return y.sum()

    held = []
    replayed = Replayed(look)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(WARM_UP + 3):
            replayed(torch.ones(4096, 4096, device=device.torch))
            torch.cuda.empty_cache()
            held.append(torch.cuda.memory_reserved() / 1e9)
    print("reserved after each call, GB:", held)
    return Found(
        bool(told) and held[-1] <= 1.1 * held[0], f"{held[0]:.2f} GB before, {held[-1]:.2f} GB after"
    )


def coins(given: Sequence[str]) -> Found:
    """Many kinds of steps: memory must stop growing once there are no more recordings."""
    need(1)
    config = settings("pose", given, "teacher_forcing.coin=step", "teacher_forcing.ratio=0.5")
    trainer, reserved = trainer_of(config, 300), []
    for n, _ in enumerate(itertools.islice(trainer.events(), 300)):
        if n % 30 == 29:
            reserved.append(round(torch.cuda.memory_reserved() / 1e9, 2))
    print("reserved every 30 steps, GB:", reserved)
    return Found(
        reserved[-1] <= 1.1 * reserved[4], f"{reserved[4]} GB after 150 steps, {reserved[-1]} after 300"
    )


def resume(given: Sequence[str]) -> Found:
    """An interrupted training goes on bit for bit, with deterministic kernels."""
    own = ["runtime.deterministic=true", "train.epochs=1", "eval.every=0", "data.n_future=4"]
    good, wrong = True, []
    for name in FAMILIES if torch.cuda.is_available() else FAMILIES[:1]:
        config = settings(name, given, *own, f"train.steps_per_epoch={STEPS}")
        half = settings(name, given, *own, f"train.steps_per_epoch={STEPS}", f"train.max_steps={STEPS // 2}")
        with tempfile.TemporaryDirectory() as folder:
            whole = cvaecli.train(config, name="whole", runs=Path(folder))
            cvaecli.train(half, name="half", runs=Path(folder))
            parts = cvaecli.resume("half", ["train.max_steps=null"], runs=Path(folder))
            one, other = (load_checkpoint(run.checkpoint_path("last"))["model"] for run in (whole, parts))
        same = all(torch.equal(one[key], other[key]) for key in one)
        good, wrong = good and same, wrong + [name] * (not same)
    return Found(good, "bit for bit" if good else f"not equal: {', '.join(wrong)}")


def agreement(given: Sequence[str]) -> Found:
    """The tool against the plain path, with and without TF32."""
    cuda, good, lines = torch.cuda.is_available(), True, []
    own = ["train.ema=null", "train.recon=mse", "kl.reduction=sum"]  # what the plain path has
    for name, more in (("pose", []), ("robot", ["model.norm=group"])):
        for tf32 in (False, True) if cuda else (False,):
            found = compare_numbers.training(settings(name, given, *own, *more), tf32)
            print(name, {key: f"{value:.1e}" for key, value in found.items()}, flush=True)
            # Not the KL by itself: that of a new model is a difference of nearly equal numbers.
            worst = max(found[key] for key in ("loss", "recon", "gradient"))
            good = good and (tf32 or worst < 1e-4)
            lines.append(f"{name}, {'TF32' if tf32 else 'fp32'}: furthest from the plain path {worst:.1e}")
    return Found(good, "; ".join(lines), lines if cuda else [])


def speed(given: Sequence[str]) -> Found:
    """Frames/s and share of the bf16 peak at batches that fill the GPU, and at batch 2."""
    need(1)
    good, lines = True, []
    for name in ("pose", "reference", "robot"):
        mine, fast = list(given) if name != "robot" else [], ["train.ema=null", "runtime.graphs=true"]
        first: dict[str, Any] | None = None
        best: dict[str, Any] | None = None
        for batch in (2**n for n in range(1, 11)):
            found = tools.apart(batch_size.measured, name, [*mine, *fast], 20, 64, batch)
            if found is None:
                break
            first, gain = first or found, best and found["train_frames_per_s"] / best["train_frames_per_s"]
            if gain and gain < batch_size.GAIN:
                break
            best = found
        if first is None or best is None:
            return Found(False, f"{name}: not even a batch of 2 fits", lines)
        share, ratio = (
            best["train_fraction_of_peak"],
            best["train_frames_per_s"] / first["train_frames_per_s"],
        )
        good = good and share >= 0.5 and ratio <= 3
        lines.append(
            f"{name}, batch {best['batch'][0]}: {best['train_frames_per_s']:.0f} frames/s, {share:.0%} of "
            f"the bf16 peak (target 50 %), {ratio:.1f} times those of batch 2 (target: at most 3)"
        )
        print(lines[-1], flush=True)
    return Found(good, "; ".join(lines), lines)


def rollouts(given: Sequence[str]) -> Found:
    """Seconds of 629 predicted frames."""
    need(1)
    good, lines = True, []
    for name, target in (("reference", 0.1), ("pose", 3.0)):
        config = load(name, ["train.batch_size=2", *given])
        seconds = cvaecli.bench(config, steps=1, frames=FRAMES)["rollout_seconds"]
        good = good and seconds < target
        lines.append(f"{name}: {FRAMES} frames predicted in {seconds} s (target {target})")
    return Found(good, "; ".join(lines), lines)


class Contiguous(Device):
    """The same device with weights in PyTorch's usual layout, NCHW."""

    def place(self, model: Any) -> Any:
        """See ``Device``."""
        return model.to(self.torch)


def layouts(given: Sequence[str]) -> Found:
    """Channels-last against NCHW, which CUDA's group norm converts to, and compiled."""
    need(1)
    lines, steps = [], 60
    for name, batch in (("reference", 64), ("pose", 16)):
        for layout, compile_ in ((Device, "off"), (Contiguous, "off"), (Device, "on")):
            overrides = [f"train.batch_size={batch}", f"runtime.compile={compile_}", "train.log_every=10"]
            config = settings(name, given, "runtime.precision=auto", *overrides)
            device = prepare(config.runtime)
            trainer = trainer_of(config, 2 * steps, layout(device.torch, device.bf16))
            events = trainer.events()
            for _ in itertools.islice(events, WARM_UP + 7):
                pass
            device.synchronize()
            began = time.perf_counter()
            for _ in itertools.islice(events, steps):
                pass
            device.synchronize()
            frames = steps * batch * (config.train.window - config.data.n_past)
            what = "NCHW" if layout is Contiguous else "channels-last"
            rate = frames / (time.perf_counter() - began)
            lines.append(f"{name}, batch {batch}, {what}, compile {compile_}: {rate:.0f} frames/s")
            print(lines[-1], flush=True)
            events.close()  # type: ignore[attr-defined]
    return Found(True, "see the lines", lines)


class Searching(Device):
    """The same device, with cuDNN's search for the fastest kernels in validations too."""

    def many_shapes(self) -> Any:
        """See ``Device``."""
        return contextlib.nullcontext()


def validation(given: Sequence[str]) -> Found:
    """Seconds of a first and a second validation, with cuDNN's search for the fastest kernels and without."""
    need(1)
    lines = []
    config = settings("pose", given, "runtime.precision=auto")
    for kind, what in ((Searching, "with"), (Device, "without")):
        device = prepare(config.runtime)
        trainer, seconds = trainer_of(config, 1, kind(device.torch, device.bf16)), []
        for _ in range(2):
            began = time.perf_counter()
            trainer.evaluate()
            seconds.append(time.perf_counter() - began)
        lines.append(f"pose, validation {what} the search: {seconds[0]:.1f} s, then {seconds[1]:.1f} s")
    return Found(True, "; ".join(lines), lines)


def waits(given: Sequence[str]) -> Found:
    """Where training steps wait for the device, and which operators take the time."""
    config = settings("pose", given, "train.log_every=1000", "runtime.graphs=false")
    trainer = trainer_of(config, STEPS)
    cuda, events = trainer.device.torch.type == "cuda", trainer.events()
    for _ in itertools.islice(events, WARM_UP):
        pass
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if cuda else []
    with (
        warnings.catch_warnings(record=True) as told,
        torch.profiler.profile(activities=activities) as profile,
    ):
        warnings.simplefilter("always")
        if cuda:
            torch.cuda.set_sync_debug_mode("warn")
        for _ in itertools.islice(events, 5):
            pass
        if cuda:
            torch.cuda.set_sync_debug_mode("default")
    averages = profile.key_averages()
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    print(averages.table(sort_by=order, row_limit=15, max_name_column_width=50))
    if not cuda:
        return Found(None, "profiled; the synchronisations need 1 GPU, there are 0")
    where = Counter(
        f"{Path(one.filename).name}:{one.lineno}" for one in told if "synchron" in str(one.message)
    )
    print("synchronisations in 5 steps:", dict(where))
    return Found(not where, "none" if not where else f"{dict(where)}")


def second_gpu(given: Sequence[str]) -> Found:
    """Training on ``cuda:1`` happens there, and moves the loss."""
    need(2)
    used = torch.cuda.mem_get_info(0)[0]
    made = trained(settings("pose", given, "runtime.device=cuda:1"))
    taken = (used - torch.cuda.mem_get_info(0)[0]) / 1e9
    good = made.recordings > 0 and len(set(made.losses)) == len(made.losses) and taken < 1
    return Found(good, f"{made.recordings} recordings, {taken:.2f} GB taken of the first GPU")


def processes(given: Sequence[str]) -> Found:
    """One process against several, and one of them killed. On CPUs two processes with gloo."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus == 1:
        need(2)
    count, steps = gpus or 2, 2 * STEPS if gpus else 6
    own = [f"runtime.device={'cuda' if gpus else 'cpu'}", f"train.batch_size={4 * count}", "eval.every=0"]
    own += ["train.epochs=1", f"train.steps_per_epoch={steps}", "data.n_future=4"]
    config = settings("pose", given, *own)
    load_data(config, ("train", "val"), Silent())  # the cache, once
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        losses, rates = [], []
        for number in (1, count):
            with launched(folder, number, f"with-{number}") as process:
                if process.wait(SECONDS / 3):
                    return Found(False, f"{number} processes: exit status {process.returncode}")
            rows = list(read_rows(Path(folder, "runs", f"with-{number}", "steps.csv")))
            losses.append([float(row["loss"]) for row in rows])
            rates.append(sorted(float(row["frames_per_s"]) for row in rows)[len(rows) // 2])
        away = max(abs(a / b - 1) for a, b in zip(*losses, strict=True))
        killed = _killed(folder, count)
    backend = "NCCL" if gpus else "gloo"
    line = f"{count} processes, {backend}: {rates[1] / rates[0]:.2f} times the frames/s of one"
    told = f"losses {away:.1e} apart; {killed or 'the others did not end'}"
    return Found(away < 1e-3 and bool(killed), told, [line] if gpus else [])


@contextlib.contextmanager
def launched(folder: str, count: int, name: str, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """``cvae train`` in ``count`` processes; whatever is left of it at the end is killed."""
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    )
    command = [sys.executable, *launcher, "-m", "cvaecli", "train", "-q"]
    command += ["-c", "config.yaml", "--name", name, *more]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=sys.stderr, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _killed(folder: str, count: int) -> str:
    """Kill one process of a training; how the rest ended, or an empty text if it did not."""
    rows = Path(folder, "runs", "killed", "steps.csv")
    with launched(folder, count, "killed", "train.steps_per_epoch=100000") as process:
        deadline = time.monotonic() + SECONDS / 3
        while not (rows.exists() and rows.read_text().count("\n") > 3):
            if process.poll() is not None or time.monotonic() > deadline:
                return ""
            time.sleep(0.05)
        children = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
        )
        os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
        began = time.monotonic()
        try:
            status = process.wait(90)
        except subprocess.TimeoutExpired:
            return ""
        info = json.loads((rows.parent / "run.json").read_text(encoding="utf-8"))
    return f"one killed: exit status {status} after {time.monotonic() - began:.0f} s, run {info['status']}"


CHECKS: dict[str, Callable[[Sequence[str]], Found]] = {
    "versions": versions,
    "tests": gpu_tests,
    "clock": clock,
    "graphs": graphs,
    "prefetch": prefetch,
    "refused": refused,
    "coins": coins,
    "resume": resume,
    "agreement": agreement,
    "speed": speed,
    "rollouts": rollouts,
    "layouts": layouts,
    "validation": validation,
    "waits": waits,
    "second-gpu": second_gpu,
    "processes": processes,
}


# --- running them -------------------------------------------------------------------------------------


def checked(name: str, given: Sequence[str]) -> Found:
    """What a check found, in this process; an exception is a failure."""
    try:
        return CHECKS[name](given)
    except LeftOutError as error:
        return Found(None, str(error))
    except Exception as error:
        traceback.print_exc()
        return Found(False, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


def checked_apart(name: str, given: Sequence[str], seconds: float = SECONDS) -> Found:
    """What a check found, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "found.json")
        command = [sys.executable, __file__, "--checks", name, "--result", str(result), *given]
        process = subprocess.Popen(command, start_new_session=True)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return Found(False, f"not done after {seconds:.0f} s")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if not result.exists():
            return Found(False, f"its process ended with status {status}")
        return Found(*json.loads(result.read_text(encoding="utf-8")))


def report(found: dict[str, Found], seconds: dict[str, float]) -> None:
    """Print the table, and the lines for docs/performance.md."""
    words = {True: "passed", False: "FAILED", None: "left out"}
    rows = [[name, words[one.passed], f"{seconds[name]:.0f}", one.summary] for name, one in found.items()]
    print()
    tools.markdown(["check", "result", "s", "found"], rows)
    lines = [line for one in found.values() for line in one.lines]
    print("\nFor docs/performance.md:\n" if lines else "\nNothing for docs/performance.md: no GPU.")
    for line in lines:
        print(f"- {line}")


def main() -> None:
    """Run the checks and report."""
    parser = tools.parser(__doc__, config=None)
    parser.add_argument("--checks", default=",".join(CHECKS), help="names, separated by commas")
    parser.add_argument("--result", type=Path, help="run one check in this process and write what it found")
    arguments = parser.parse_intermixed_args()
    names, given = arguments.checks.split(","), tools.overrides(arguments)
    if unknown := set(names) - set(CHECKS):
        sys.exit(f"{', '.join(sorted(unknown))}: no such check; there are {', '.join(CHECKS)}")
    if arguments.result:
        arguments.result.write_text(json.dumps(checked(names[0], given)), encoding="utf-8")
        return
    found: dict[str, Found] = {}
    seconds: dict[str, float] = {}
    for name in names:
        print(f"\n== {name}: {CHECKS[name].__doc__}", flush=True)
        began = time.monotonic()
        found[name] = checked_apart(name, given)
        seconds[name] = time.monotonic() - began
        print(f"{name}: {found[name].summary}", flush=True)
    report(found, seconds)
    sys.exit(any(one.passed is False for one in found.values()))


if __name__ == "__main__":
    tools.command(main)
