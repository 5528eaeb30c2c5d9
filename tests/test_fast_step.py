"""Faster or leaner ways to make a training step: each must make the same step as the plain one."""

from __future__ import annotations

import copy
import functools
import gc
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import BASE, CPU, SIZES, Operators, make_clip, make_config, make_trainer, run_events

from cvaecli import models
from cvaecli.config import loading as configs
from cvaecli.config.schema import RunConfig, RuntimeConfig
from cvaecli.data.clip import Clip
from cvaecli.engine.device import COMPILING_PAYS, Device, compiled
from cvaecli.engine.events import StepEvent
from cvaecli.engine.fit import Trainer
from cvaecli.engine.graph import WARM_UP, Replayed
from cvaecli.engine.optimizer import clip_gradients, load_state, make_optimizer, set_lr
from cvaecli.models.layers import GatedFeedForward, join_time, split_time

ROBOT = {
    "name": "svg",
    "backbone": "dcgan",
    "width": 4,
    "g_dim": 4,
    "z_dim": 2,
    "rnn_size": 4,
    "levels": [1],
    "conditional_conv": True,
}
FORCED = {"ratio": 1.0}
FREE = {"ratio": 0.0, "noise": 0.1}


def robot_clip(frames: int = 9) -> Clip:
    picture = make_clip(frames, "r", size=16).frames
    generator = torch.Generator().manual_seed(0)
    return Clip("r", picture, torch.randn(frames, 7, generator=generator).numpy())


def trainer(family: str, forcing: dict[str, Any], **sections: dict[str, Any]) -> Trainer:
    """With SGD: Adam would magnify the rounding errors of gradients near 0."""
    sections["optim"] = {"name": "sgd", "lr": 0.01, "schedule": "constant", **sections.get("optim", {})}
    train = {
        "window": 8,
        "batch_size": 2,
        "log_every": 1,
        "epochs": 8,
        "steps_per_epoch": 3,
        **sections.pop("train", {}),
    }
    if family == "pose":
        data, model = {"height": 8, "width": 8}, {**SIZES, "output": "sigmoid"}
        clips = [make_clip(17, "a")]
    else:
        data = {"height": 16, "width": 16, "kind": "robot", "n_past": 2, "n_future": 4}
        model, clips = ROBOT, [robot_clip(16)]
    raw = {**BASE, **sections, "train": train, "model": model, "data": data, "teacher_forcing": forcing}
    config = configs.from_dict(raw)
    torch.manual_seed(0)
    built = models.load(config.model_name)(config.model, clips[0].condition.shape[1:])
    return Trainer(built, config, CPU, clips, [])


def losses(trained: Trainer, steps: int = 4) -> list[float]:
    events = trained.events()
    made = []
    while len(made) < steps:
        event = next(events)
        if isinstance(event, StepEvent):
            assert event.terms is not None
            made.append(event.terms["loss"])
    return made


def assert_same_state(one: Trainer, other: Trainer, statistics: bool = True) -> None:
    for (name, a), b in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        if not statistics and ("running" in name or "tracked" in name):
            continue
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("forcing", [FORCED, FREE], ids=["forced", "free"])
@pytest.mark.parametrize("family", ["pose", "robot"])
def test_kept_steps_change_memory_only(family: str, forcing: dict[str, Any]) -> None:
    """Losses, weights and the statistics of batch norm, which must not be counted twice; but a robot's
    forced stretches each encode their first frame, which the stretch before has encoded as a target."""
    plain = trainer(family, forcing)
    expected = losses(plain)
    for kept in (1, 3, 100):
        lean = trainer(family, forcing, train={"kept_steps": kept})
        torch.testing.assert_close(losses(lean), expected, rtol=1e-5, atol=1e-7)
        assert_same_state(lean, plain, statistics=(family, forcing) != ("robot", FORCED) or kept == 100)


def test_kept_steps_keep_less() -> None:
    """What autograd holds between the passes, in values."""

    def held(kept: int | None) -> int:
        trained, total = trainer("pose", FREE, train={"kept_steps": kept}), 0

        def pack(values: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += values.numel()
            return values

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda values: values):
            backward, torch.Tensor.backward = torch.Tensor.backward, lambda self: None  # type: ignore[method-assign,assignment]
            try:
                next(trained.events())
            finally:
                torch.Tensor.backward = backward  # type: ignore[method-assign]
        return total

    assert held(1) < 0.2 * held(None)


class Results(list[Any]):
    """Filled by every replay, as a recording's outputs are."""


class CallAgain:
    """Like CUDA graphs: nothing is computed before the first replay, and a replay sees nothing new but what
    was copied into the arguments it was recorded with."""

    cleaned = 0

    def warm_up(self, function: Callable[[], Any]) -> Any:
        return function()

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        results = Results()

        def replay() -> None:
            results[:] = function()

        return replay, results

    def clean_up(self) -> None:
        self.cleaned += 1


def recorded(trained: Trainer) -> CallAgain:
    """Have a trainer record its steps, and return what records them."""
    recorder = CallAgain()
    trained._update, trained.graphs = Replayed(trained._update, recorder), True
    return recorder


@pytest.mark.parametrize(
    "forcing",
    [FORCED, {"ratio": 0.7, "coin": "batch", "mode": "blend"}, FREE],
    ids=["forced", "blend", "free"],
)
@pytest.mark.parametrize("name", ["sgd", "muon"])
@pytest.mark.usefixtures("small_matrices")
def test_replayed_steps_are_the_plain_ones(forcing: dict[str, Any], name: str) -> None:
    """With a beta and a learning rate that change at every step."""
    schedules = {"kl": {"schedule": "cyclical", "cycles": 2}, "optim": {"schedule": "cosine", "name": name}}
    plain, replayed = (trainer("pose", forcing, **schedules) for _ in range(2))
    recorded(replayed)
    steps = 2 * WARM_UP + 3
    torch.testing.assert_close(losses(replayed, steps), losses(plain, steps), rtol=1e-5, atol=1e-7)
    assert_same_state(replayed, plain)


def test_the_end_of_a_training_gives_the_memory_of_its_recordings_back() -> None:
    trained = trainer("pose", FREE)
    recorder, events = recorded(trained), trained.events()
    for _ in range(WARM_UP + 2):
        next(events)
    update = trained._update
    assert isinstance(update, Replayed) and update._recordings and not recorder.cleaned
    events.close()  # type: ignore[attr-defined]
    assert not update._recordings and recorder.cleaned == 1
    assert all(p.grad is None for p in trained.model.parameters()), "gradients live in the recordings' memory"


def test_a_trainer_is_gone_when_nobody_holds_it() -> None:
    """Without the collector: nothing that it holds refers back to it."""
    trained = trainer("pose", FREE)
    recorded(trained)
    losses(trained, WARM_UP + 2)
    gone = weakref.ref(trained)
    gc.disable()
    try:
        del trained
        assert gone() is None
    finally:
        gc.enable()


WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "lift_fresh"}
"""Operators for which the host waits for the device, or copies to it: a recording would refuse them."""


@pytest.mark.parametrize("forcing", [FORCED, FREE], ids=["forced", "free"])
@pytest.mark.parametrize("family", ["pose", "robot"])
@pytest.mark.parametrize("name", ["sgd", "muon"])
@pytest.mark.usefixtures("small_matrices")
def test_an_update_never_waits_for_the_device(family: str, forcing: dict[str, Any], name: str) -> None:
    trained = trainer(family, forcing, train={"grad_clip": None}, optim={"name": name})
    batch, coins = next(trained._batches()), trained._forced(0)
    micro_batches = [trained._loss.groups(batch, 0, 0, coins)]
    with Operators() as seen:
        trained._update(micro_batches, coins, torch.ones(()), torch.ones(()))
    assert "convolution_backward" in seen.names and not seen.names & WAITING
    assert ("baddbmm" in seen.names) == (name == "muon")
    with Operators() as seen:
        float(torch.ones(()))
    assert seen.names & WAITING


def test_clipping_looks_at_the_norm_on_a_cpu_alone() -> None:
    """A tensor without values refuses any look at them."""
    weight = torch.nn.Parameter(torch.ones(3, device="meta"))
    weight.grad = torch.ones(3, device="meta")
    assert clip_gradients([weight], 1.0).is_meta


@pytest.mark.parametrize("forcing", [FORCED, FREE], ids=["forced", "free"])
def test_compiled_steps_are_the_plain_ones(forcing: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and differentiated by the compiler, but run without generated code, which takes minutes."""
    traced = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", traced)
    plain, made = (trainer("pose", forcing, runtime={"compile": wanted}) for wanted in ("off", "on"))
    torch.testing.assert_close(losses(made, 2), losses(plain, 2), rtol=1e-5, atol=1e-7)
    assert_same_state(made, plain)


def on_cuda(
    monkeypatch: pytest.MonkeyPatch, family: str, forcing: dict[str, Any], **sections: Any
) -> Trainer:
    monkeypatch.setitem(globals(), "CPU", Device(torch.device("cuda", 0), False))
    sections["runtime"] = {"device": "cuda", "precision": "fp32", "graphs": False, **sections["runtime"]}
    return trainer(family, forcing, **sections)


def assert_within_rounding(made: list[float], plain: list[float], again: list[float]) -> None:
    """Not further from the plain losses than these are from themselves, times ten: sums by atomic additions
    differ from run to run, and Adam magnifies that."""
    spread = max(abs(a - b) for a, b in zip(plain, again, strict=True))
    torch.testing.assert_close(made, plain, rtol=1e-5, atol=10 * spread + 1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon", "sgd"])
@pytest.mark.parametrize("forcing", [FORCED, FREE], ids=["forced", "free"])
@pytest.mark.parametrize("family", ["pose", "robot"])
@pytest.mark.usefixtures("small_matrices")
def test_graphs_on_cuda_make_the_plain_steps(
    family: str, forcing: dict[str, Any], optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 2 * WARM_UP + 3
    made = {}
    for name, graphs in (("plain", False), ("again", False), ("graphs", True)):
        sections = {"optim": {"name": optimizer}, "runtime": {"graphs": graphs}}
        trained = on_cuda(monkeypatch, family, forcing, **sections)
        events = trained.events()
        made[name] = [event.terms["loss"] for event in itertools.islice(events, steps)]  # type: ignore[union-attr,index]
        update = trained._update
        assert not graphs or (isinstance(update, Replayed) and update._recordings), "nothing was recorded"
    assert_within_rounding(made["graphs"], made["plain"], made["again"])


@pytest.mark.gpu
@pytest.mark.parametrize("forcing", [FORCED, FREE], ids=["forced", "free"])
def test_compiled_steps_on_cuda_are_the_plain_ones(
    forcing: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, again, made = (
        losses(on_cuda(monkeypatch, "pose", forcing, runtime={"compile": wanted}))
        for wanted in ("off", "off", "on")
    )
    assert_within_rounding(made, plain, again)


def test_auto_compiles_where_it_pays() -> None:
    model = make_trainer().model
    cpu, cuda = Device(torch.device("cpu"), False), Device(torch.device("cuda"), False)
    auto = RuntimeConfig(compile="auto")
    assert compiled(model, auto, cpu, COMPILING_PAYS) is model
    assert compiled(model, auto, cuda, COMPILING_PAYS - 1) is model
    assert compiled(model, auto, cuda, COMPILING_PAYS) is not model
    assert compiled(model, RuntimeConfig(compile="off"), cuda, COMPILING_PAYS) is model
    assert compiled(model, RuntimeConfig(compile="on"), cpu, 1) is not model


def config_with(optimizer: str) -> RunConfig:
    return make_config(optim={"name": optimizer})


@pytest.mark.parametrize("name", ["adam", "adamw", "muon", "sgd"])
def test_loaded_state_keeps_this_devices_settings(name: str) -> None:
    """A run on CUDA has its learning rate on the device and counts there; a CPU goes on without."""
    model = torch.nn.Linear(32, 32)
    model.ends = ()  # type: ignore[assignment]
    optimizer = make_optimizer(model, config_with(name), graphs=False)  # type: ignore[arg-type]
    model(torch.ones(1, 32)).sum().backward()
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0].update(lr=torch.tensor(0.5), capturable=True)
    load_state(optimizer, saved)
    assert optimizer.param_groups[0]["lr"] == 0.5 and isinstance(optimizer.param_groups[0]["lr"], float)
    set_lr(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] == 0.25
    optimizer.step()  # would refuse to be capturable on a CPU


def test_inference_in_bf16_gives_the_same_numbers() -> None:
    """Weights cast once, or at every step by autocast."""
    device = Device(torch.device("cpu"), True)
    model = device.place(make_trainer().model).eval()
    ready = device.for_inference(model)
    assert ready is not model and next(model.parameters()).dtype == torch.float32
    condition, frame = torch.rand(1, 2, 3, 8, 8), torch.rand(1, 2, 3, 8, 8)
    noise = [torch.randn(1, 2, 4, 8, 8)]
    with torch.inference_mode(), device.autocast():
        one, other = (m.unroll((), frame, m.encode(condition), noise, False)[0].x_hat for m in (model, ready))
    assert torch.equal(one, other)
    assert CPU.for_inference(model) is model


def test_a_run_with_little_memory_ends_like_any_other() -> None:
    steps, epochs = run_events(make_trainer(make_config(train={"kept_steps": 2})))
    assert epochs[-1].evaluation is not None and len(steps) > 2


def test_gradients_of_the_gated_layer() -> None:
    """Written out by hand, against autograd of the formula and against finite differences."""
    layer = GatedFeedForward(3).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.double, requires_grad=True)
    a, b = layer.conv(x).chunk(2, 1)
    expected = x + layer.conv_out(a * torch.nn.functional.leaky_relu(b, 0.1))
    inputs = (x, *layer.parameters())
    torch.testing.assert_close(layer(x), expected)
    weights = torch.randn_like(expected)
    grads = [torch.autograd.grad((y * weights).sum(), inputs) for y in (layer(x), expected)]
    torch.testing.assert_close(grads[0], grads[1])
    assert torch.autograd.gradcheck(layer, (x,))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)


def test_joined_maps_stay_channels_last() -> None:
    parts = [torch.randn(2 * k, 3, 4, 4).to(memory_format=torch.channels_last) for k in (1, 2)]
    joined = join_time([split_time(part, (2, -1)) for part in parts])
    assert torch.equal(joined, torch.cat([split_time(part, (2, -1)) for part in parts], 1))
    assert joined.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
