"""What a device needs of the engine. CUDA and MPS are stood in for: their calls are logged or refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CPU, Operators, make_clip, make_config, make_model, make_trainer, run_events
from test_fast_step import FORCED, FREE, trainer
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from cvaecli.api import estimating, preparation
from cvaecli.config.schema import AugmentConfig, RuntimeConfig
from cvaecli.engine import device as devices
from cvaecli.engine.augmentation import augment
from cvaecli.engine.batches import Frames
from cvaecli.engine.device import Device, prepare, unusable_gpu
from cvaecli.engine.evaluate import evaluate
from cvaecli.engine.graph import WARM_UP
from cvaecli.engine.measure import memory_gb
from cvaecli.errors import UserError, out_of_memory
from cvaecli.models.svg import backbones
from cvaecli.reporter import Silent

# --- choosing and preparing a device ------------------------------------------------------------------


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Two GPUs, the first one current; returns the log of the devices that were made current."""
    chosen: list[str] = []
    fakes: dict[str, Callable[..., object]] = {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "current_device": lambda: 0,
        "get_device_capability": lambda device: (8, 0),
        "set_device": lambda device: chosen.append(str(device)),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32 = matmul.allow_tf32 = True
    yield chosen
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


@pytest.mark.parametrize(
    ("name", "device"), [("cuda:1", "cuda:1"), ("cuda", "cuda:0"), ("auto", "cuda:0"), ("cpu", None)]
)
def test_the_chosen_gpu_is_the_current_one(two_gpus: list[str], name: str, device: str | None) -> None:
    assert str(prepare(RuntimeConfig(device=name)).torch) == (device or "cpu")
    assert two_gpus == ([device] if device else [])


def test_fp32_on_cuda_is_not_tf32(two_gpus: list[str]) -> None:
    made = prepare(RuntimeConfig(device="cuda", precision="fp32"))
    assert made.precision == "fp32" and torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_validation_does_without_the_search_for_fast_kernels(two_gpus: list[str]) -> None:
    prepare(RuntimeConfig(device="cuda"))
    seen: list[bool] = []
    config = make_config()
    evaluate(
        make_model(),
        [make_clip(6)],
        CPU,
        config.eval,
        n_past=1,
        progress=lambda done, total: seen.append(torch.backends.cudnn.benchmark),
    )
    assert seen and not any(seen) and torch.backends.cudnn.benchmark, "and training goes on with it"


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_gpu_that_cannot_be_used_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old driver: its library counts the GPUs, but PyTorch cannot start CUDA."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    if name == "cuda":
        with pytest.raises(UserError, match=r"runtime\.device: there is a GPU.*driver"):
            prepare(RuntimeConfig(device=name))
        return
    warned: list[str] = []
    monkeypatch.setattr(preparation, "load_data", lambda *_: SimpleNamespace(splits={}))
    monkeypatch.setattr(preparation, "build_trainer", lambda *_: SimpleNamespace(prior_share=0.0))
    reporter = Silent()
    monkeypatch.setattr(reporter, "warn", warned.append)
    preparation.prepared(make_config("runtime.device=auto"), reporter, preparation.ALONE)
    assert len(warned) == 1 and "there is a GPU" in warned[0] and "driver" in warned[0]
    preparation.prepared(make_config("runtime.device=cpu"), reporter, preparation.ALONE)
    assert len(warned) == 1, "whoever asks for the CPU is told nothing"


def test_a_pytorch_without_cuda_beside_a_gpu_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(devices, "_NVIDIA_GPUS", tmp_path)
    assert unusable_gpu() == ""
    (tmp_path / "0000:01:00.0").mkdir()
    assert "version without CUDA" in unusable_gpu()


@pytest.mark.parametrize(
    "text",
    ["CUDA error: out of memory", "DefaultCPUAllocator: can't allocate memory", "MPS backend out of memory"],
)
def test_every_way_to_say_out_of_memory_is_understood(text: str) -> None:
    assert out_of_memory(RuntimeError(text)) and not out_of_memory(RuntimeError("shape [2] is wrong"))


def test_reports_tell_what_cuda_has_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2e9)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 5e9)
    cuda = Device(torch.device("cuda", 0), False)
    assert memory_gb(cuda) == {"peak_memory_gb": 2.0, "reserved_memory_gb": 5.0}
    assert set(memory_gb(CPU)) == {"peak_memory_gb"}


def test_an_estimate_takes_a_step_after_the_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its seconds are those between the last two times: the ones of a replay."""
    for graphs, steps in ((False, 3), (True, WARM_UP + 2)):
        made = make_trainer(make_config(train={"steps_per_epoch": 20}))
        events = run_steps(made)
        monkeypatch.setattr(made, "events", lambda events=events: events)
        made.graphs = graphs
        splits = {"train": [make_clip(9)]}
        estimating._report(SimpleNamespace(source="", splits=splits), made)  # type: ignore[arg-type]
        assert made.step == steps


def run_steps(made: Any) -> Iterator[int]:
    """Steps that cost nothing."""
    for step in range(1, 100):
        made.step = step
        yield step


# --- copies to CUDA -----------------------------------------------------------------------------------


class PretendCuda(TorchFunctionMode):
    """All tensors say that they are on CUDA and stay where they are; copies to it are logged as (pinned,
    non-blocking)."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[tuple[bool, bool]] = []
        self._pinned: list[torch.Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.Tensor.pin_memory:
            self._pinned.append(args[0].clone())
            return self._pinned[-1]
        if function == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return torch.device("cuda")
        if function is torch.Tensor.to and torch.device("cuda") in args:
            pinned = any(args[0] is one for one in self._pinned)
            self.copies.append((pinned, kwargs.get("non_blocking", False)))
            return args[0]
        return function(*args, **kwargs)


def test_no_copy_of_a_training_step_blocks() -> None:
    """The index into a resident set and the augmentation's grid go through pinned memory."""
    frames = Frames([make_clip(9)], CPU)
    where = torch.tensor([0, 0]), torch.tensor([[1, 2], [4, 5]])
    config = AugmentConfig(flip=0.5, shift=(1, 1), zoom=0.1)

    def changed() -> tuple[torch.Tensor, torch.Tensor]:
        batch = frames.gather(*where)
        return augment(*batch[:2], config, torch.Generator().manual_seed(0))

    expected = changed()
    frames._device = torch.device("cuda")
    with PretendCuda() as cuda:
        made = changed()
    assert cuda.copies == [(True, True), (True, True)]
    for one, other in zip(made, expected, strict=True):
        assert torch.equal(one, other)


def test_resident_frames_are_copied_clip_by_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not joined on the host first, which would take the whole set's size once more in every process."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("joined on the host")

    monkeypatch.setattr(np, "concatenate", refuse)
    clips = [make_clip(5, "a"), make_clip(7, "b", seed=1, steps=9)]
    for clip in clips:
        clip.frames.flags.writeable = clip.condition.flags.writeable = False
    frames = Frames(clips, CPU)
    batch = frames.gather(torch.tensor([0, 1]), torch.tensor([[4], [6]]))
    for row, (clip, at) in enumerate(zip(clips, (4, 6), strict=True)):
        assert torch.equal(batch.frames[row, 0], torch.from_numpy(clip.frames[at].copy()).float() / 255)
        assert torch.equal(batch.condition[row, 0], torch.from_numpy(clip.condition[at].copy()).float() / 255)


# --- MPS ----------------------------------------------------------------------------------------------


class PretendMPS(TorchFunctionMode):
    """Refuses float64, which MPS does not have, for all tensors but those that were copied to the host."""

    def __init__(self) -> None:
        super().__init__()
        self._host: dict[int, Any] = {}  # holds the tensors, so that no other one gets their id

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        on_host = any(id(one) in self._host for one in tensors)
        if function is torch.Tensor.double and not on_host:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        made = function(*args, **kwargs)
        if function is torch.Tensor.cpu:
            made = made.clone()
        if isinstance(made, torch.Tensor) and (on_host or function is torch.Tensor.cpu):
            self._host[id(made)] = made
        return made


def test_training_and_validation_ask_mps_for_nothing_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No float64, and no foreach kernels."""
    for module in (torch.utils._foreach_utils, torch.nn.utils.clip_grad):
        monkeypatch.setattr(module, "_device_has_foreach_support", lambda device: False)
    with PretendMPS():
        steps, epochs = run_events(make_trainer())
        with pytest.raises(TypeError, match="float64"):
            torch.ones(1).double()
    assert steps[-1].terms is not None and epochs[-1].evaluation is not None


# --- deterministic kernels ----------------------------------------------------------------------------

REFUSED = {
    *("_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "avg_pool3d_backward"),
    *("reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward"),
    *("upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward"),
    *("grid_sampler_2d_backward", "nll_loss_forward", "put_", "histc", "median", "kthvalue"),
    "scatter_reduce",
}
"""Operators that raise on CUDA under ``use_deterministic_algorithms``, from that function's documentation."""


@pytest.mark.parametrize("forcing", [FORCED, FREE], ids=["forced", "free"])
@pytest.mark.parametrize("family", ["pose", "robot"])
def test_deterministic_training_runs_no_operator_that_cuda_refuses(
    family: str, forcing: dict[str, Any]
) -> None:
    """The robot's pictures are not 64 pixels wide, so its maps are resized."""
    made = trainer(family, forcing)

    def operators() -> set[str]:
        with Operators() as seen:
            next(made.events())
        return seen.names

    plain = operators()
    assert "convolution_backward" in plain
    torch.use_deterministic_algorithms(True)
    try:
        assert not operators() & REFUSED
    finally:
        torch.use_deterministic_algorithms(False)
    assert bool(plain & REFUSED) == (family == "robot"), "what the resizing is replaced for"


@pytest.mark.parametrize(("shape", "size"), [((12, 20), (4, 4)), ((3, 5), (4, 4)), ((4, 4), (3, 7))])
def test_resizing_with_deterministic_kernels_gives_the_same(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    x = torch.rand(2, 3, *shape)
    expected = backbones.resize(x, size)
    torch.use_deterministic_algorithms(True)
    try:
        torch.testing.assert_close(backbones.resize(x, size), expected)
    finally:
        torch.use_deterministic_algorithms(False)


def test_deterministic_cublas_has_its_workspace(two_gpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda wanted: None)
    prepare(RuntimeConfig(device="cuda", deterministic=True))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8" and not torch.backends.cudnn.benchmark


@pytest.mark.gpu(2)
def test_a_run_on_the_second_gpu_leaves_the_first_alone() -> None:
    config = make_config(train={"log_every": 1, "epochs": 4}, runtime={"device": "cuda:1", "graphs": True})
    trained = make_trainer(config, device=Device(prepare(config.runtime).torch, False))
    before = torch.cuda.memory_allocated(0)
    steps, _ = run_events(trained)
    losses = [event.terms["loss"] for event in steps if event.terms is not None]
    assert torch.cuda.memory_allocated(0) == before and len(set(losses)) == len(losses)
