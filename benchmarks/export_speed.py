"""Exported models against PyTorch on one CPU core: frames per second, largest difference, loss in dB.

For every RUN: PyTorch in float32 and in bfloat16, onnxruntime in float32, and onnxruntime with convolutions
and matrix products in int8 (static quantisation, ranges from the frames of a training clip); in brackets the
speed relative to PyTorch in float32. One video of the validation split, z at the prior's mean. The time is
the process's CPU time, which a busy machine changes less than the clock's.

Example: python benchmarks/export_speed.py RUN RUN --frames 60
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import tools
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from torch import Tensor

from cvaecli import export, metrics
from cvaecli.api.exporting import onnx_call
from cvaecli.api.loading import Opened, load_data, open_run
from cvaecli.data.clip import Clip
from cvaecli.engine.batches import to_float
from cvaecli.engine.portable import Call, Floats, played
from cvaecli.engine.rollout import rollout
from cvaecli.reporter import Silent

TURNS = 3
CALIBRATION = 16  # frames from which the ranges of int8 are taken


class _Recorded(CalibrationDataReader):
    """The inputs that a graph got."""

    def __init__(self, path: Path, inputs: list[Mapping[str, Floats]]) -> None:
        names = [found.name for found in onnxruntime.InferenceSession(str(path)).get_inputs()]
        self._inputs = iter([{name: each[name] for name in names} for each in inputs])

    def get_next(self) -> Mapping[str, Floats] | None:
        return next(self._inputs, None)


def recording(call: Call, inputs: list[Mapping[str, Floats]]) -> Call:
    """``call``, which keeps what it gets in ``inputs``."""

    def recorded(arrays: Mapping[str, Floats]) -> Mapping[str, Floats]:
        inputs.append({name: np.ascontiguousarray(value) for name, value in arrays.items()})
        return call(arrays)

    return recorded


def quantised(files: list[Path], predict: Callable[[dict[str, Call]], Floats]) -> dict[str, Call]:
    """The graphs in int8, after ``predict`` has shown them inputs."""
    seen: dict[str, list[Mapping[str, Floats]]] = {path.stem: [] for path in files}
    predict({path.stem: recording(onnx_call(path, 1), seen[path.stem]) for path in files})
    calls = {}
    for path in files:
        small = path.with_name(f"{path.stem}-int8.onnx")
        reader = _Recorded(path, seen[path.stem])
        quantize_static(str(path), str(small), reader, per_channel=True, weight_type=QuantType.QInt8)
        calls[path.stem] = onnx_call(small, 1)
    return calls


def timed(works: Sequence[Callable[[], Floats]]) -> list[tuple[Floats, float]]:
    """The results of ``works``, and the least CPU seconds of ``TURNS`` that they take one after the other."""
    found = [work() for work in works]  # the warm-up
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(TURNS):
        for work, own in zip(works, seconds, strict=True):
            began = time.process_time()
            work()
            own.append(time.process_time() - began)
    return [(result, min(own)) for result, own in zip(found, seconds, strict=True)]


class _Video(NamedTuple):
    """A clip as the inputs of a rollout of one row.

    Attributes:
        past: ``[1, n_past, C, H, W]``.
        given, condition: ``[1, n_past, ...]`` and ``[1, K, ...]``.
        noise: zeros ``[1, K, *shape]`` for each latent level.
        truth: ``[1, K, C, H, W]``.
    """

    past: Tensor
    given: Tensor
    condition: Tensor
    noise: list[Tensor]
    truth: Tensor

    @classmethod
    def of(cls, opened: Opened, clip: Clip, frames: int) -> _Video:
        P = opened.config.data.n_past
        x, c = (
            to_float(torch.from_numpy(np.array(values[: P + frames]))[None])
            for values in (clip.frames, clip.condition)
        )
        shapes = opened.model.noise_shapes((x.shape[-2], x.shape[-1]))
        noise = [torch.zeros(1, x.shape[1] - P, *shape) for shape in shapes]
        return cls(x[:, :P], c[:, :P], c[:, P : x.shape[1]], noise, x[:, P:])

    def by_graphs(self, calls: Mapping[str, Call]) -> Floats:
        noise = lambda first, count: self.noise  # noqa: E731
        pieces = played(calls, self.past, self.given, [self.condition], noise)
        return torch.cat(list(pieces), 1).numpy()

    def by_torch(self, opened: Opened) -> Floats:
        """All frames at once, if the model is parallel."""
        noise = lambda first, count: self.noise  # noqa: E731
        pieces = rollout(opened.model, self.past, self.given, [self.condition], noise, opened.device)
        return torch.cat(list(pieces), 1).numpy()

    def psnr(self, found: Floats) -> float:
        return float(metrics.psnr(torch.from_numpy(found), self.truth).mean())


def measured(run: str, frames: int) -> list[str]:
    """A row of the table."""
    opened, half = (
        open_run(run, ["runtime.device=cpu", f"runtime.precision={precision}", "runtime.threads=1"])
        for precision in ("fp32", "bf16")
    )
    splits = load_data(opened.config, ("train", "val"), Silent()).splits
    shown = _Video.of(opened, splits["train"][0], CALIBRATION)
    video = _Video.of(opened, splits["val"][0], frames)
    with tempfile.TemporaryDirectory() as folder:
        files = export(run, out=Path(folder)).files
        calls = {path.stem: onnx_call(path, 1) for path in files}
        small = quantised(files, shown.by_graphs)
        sides = [lambda: video.by_torch(opened), lambda: video.by_torch(half)]
        sides += [lambda: video.by_graphs(calls), lambda: video.by_graphs(small)]
        (plain, seconds), (bf16, *_), (onnx, _), (int8, _) = found = timed(sides)
    return [
        opened.config.model_name,
        f"{np.abs(onnx - plain).max():.1e}",
        *(f"{plain.shape[1] / each:.1f} ({seconds / each:.2f})" for _, each in found),
        f"{video.psnr(plain):.2f}",
        *(f"{video.psnr(each) - video.psnr(plain):+.2f}" for each in (bf16, int8)),
    ]


def main() -> None:
    """Print a row for every run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--frames", type=int, default=60, help="predicted frames")
    arguments = parser.parse_args()
    heads = ["model", "largest difference", "PyTorch fp32, frames/s", "PyTorch bf16", "onnxruntime fp32"]
    heads += ["onnxruntime int8", "PSNR fp32, dB", "bf16, dB", "int8, dB"]
    tools.markdown(heads, [measured(run, arguments.frames) for run in arguments.runs])


if __name__ == "__main__":
    main()
