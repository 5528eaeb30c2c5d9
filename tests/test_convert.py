"""``cvae convert``: other programs' checkpoints become runs that predict the same; nothing in them runs."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import test_pose_parity as pose
import test_svg_parity as svg
import torch
from helpers import cvae, write_set
from torch import Tensor, nn

import cvaecli
from cvaecli.api.loading import open_run
from cvaecli.engine.rollout import prior_noise, rollout
from cvaecli.errors import UserError
from cvaecli.models.inert_pickle import InertFile, Record
from cvaecli.models.pose import PoseConfig, PoseCVAE
from cvaecli.models.svg.model import SVG, SVGConfig

FP32 = ["runtime.device=cpu", "runtime.precision=fp32"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def course_file(path: Path, model: PoseCVAE) -> Path:
    """As the course's template saves it, its mistake with the optimiser included."""
    state = model.state_dict()
    content = {"state_dict": state, "optimizer": state, "lr": 1e-3, "tfr": 0.0, "last_epoch": 4}
    torch.save(content, path)
    return path


def original(module: nn.Module, classes: ModuleType) -> Any:
    """The same module made of classes that can only be imported while ``classes`` can."""
    copy = classes.Layer()
    copy._parameters.update(module._parameters)
    copy._buffers.update(module._buffers)
    copy._modules.update({name: original(child, classes) for name, child in module._modules.items()})
    return copy


def svg_file(path: Path, model: SVG, **how: Any) -> Path:
    """As the SVG code saves it: whole modules. Their classes cannot be imported afterwards."""
    classes = ModuleType("svg_models")
    exec("from torch import nn\nclass Layer(nn.Module):\n    pass\n", vars(classes))
    with pytest.MonkeyPatch.context() as context:
        context.setitem(sys.modules, "svg_models", classes)
        parts = {name: original(getattr(model, name), classes) for name in svg.MODULES}
        size = {"image_width": how.pop("size", 64), "n_past": 2, "n_future": 3}
        options = argparse.Namespace(**size, last_frame_skip=False, optimizer=torch.optim.Adam)
        torch.save({**parts, "args": options, "last_epoch": 9}, path, **how)
    return path


# --- numbers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def course_step(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """``forced_step`` of a converted course checkpoint with weights by formula."""
    folder = tmp_path_factory.mktemp("course")
    file = course_file(folder / "epoch=4.ckpt", pose.build())
    opened = open_run(cvaecli.convert(file, "cyclical", runs=folder / "runs").path, FP32)
    assert isinstance(opened.model, PoseCVAE) and opened.checkpoint["epoch"] == 5
    assert opened.config.model == PoseConfig(), "linear output and no clamp, as in the course's code"
    assert opened.config.train.epochs == 50, "as in cyclical"
    return pose.forced_step(opened.model)


def test_a_course_checkpoint_predicts_what_it_predicted(course_step: dict[str, Any]) -> None:
    golden = json.loads(pose.GOLDEN.read_text())["eval"]
    assert pose.sums(course_step["maps"]["x_hat"]) == pytest.approx(golden["sums"]["x_hat"], rel=1e-5)


@pytest.mark.shared
def test_a_course_checkpoint_predicts_what_the_published_code_predicts(
    course_step: dict[str, Any], shared: Path
) -> None:
    pose.compare_with_published(course_step, shared, "eval")


@pytest.fixture(scope="module")
def svg_steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """``forced_steps`` of a converted SVG file with weights by formula."""
    folder = tmp_path_factory.mktemp("svg")
    file = svg_file(folder / "model.pth", svg.build())
    with pytest.raises(Exception, match="svg_models"):
        torch.load(file, weights_only=False)
    opened = open_run(cvaecli.convert(file, "robot", runs=folder / "runs").path, FP32)
    assert isinstance(opened.model, SVG) and opened.checkpoint["epoch"] == 10
    assert (opened.config.data.n_past, opened.config.data.n_future) == (2, 3)
    return svg.forced_steps(opened.model)


def test_an_svg_file_predicts_what_it_predicted(svg_steps: dict[str, Any]) -> None:
    golden = json.loads(svg.GOLDEN.read_text())
    assert svg.sums(svg_steps["maps"]["x_hat3"]) == pytest.approx(golden["maps"]["x_hat3"], rel=1e-5)


@pytest.mark.shared
def test_an_svg_file_predicts_what_the_published_code_predicts(
    svg_steps: dict[str, Any], shared: Path
) -> None:
    svg.compare_with_published(svg_steps, shared)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_a_file_from_before_version_1_6_has_the_same_weights() -> None:
    model = small_svg()
    file = svg_file(Path("x.pth"), model, size=16, _use_new_zipfile_serialization=False)
    cvae("convert", file, "--config", "robot", "--name", "x").good()
    state = open_run("x", FP32).model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def small_svg(condition: int = 7, **settings: Any) -> SVG:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"width": 4, "g_dim": 8, "z_dim": 4, "rnn_size": 8, **settings}
    return SVG(SVGConfig(**sizes), (condition,)).eval()


def rolled(model: SVG, condition: Tensor) -> Tensor:
    frames = torch.rand(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    noise = prior_noise(model, ["a", "b"], (16, 16), prior="sample", seed=0, n_past=2)
    pieces = rollout(model, frames, condition[:, :2], [condition[:, 2:]], noise, open_run("x", FP32).device)
    return torch.cat(list(pieces), 1)


def test_an_svg_file_without_conditions_and_norm_ignores_the_conditions() -> None:
    """The first published version: no conditions, no batch norm behind the predictor."""
    model = small_svg(condition=0, backbone="dcgan", prior="learned", legacy_skip=True)
    norm = model.frame_predictor.output[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.eps, norm.weight.data[:] = 1e-12, 1.0  # in the model to compare with it changes nothing
    plain, model.frame_predictor.output[1] = model.frame_predictor.output, nn.Tanh()
    file = svg_file(Path("model.pth"), model, size=16)
    model.frame_predictor.output = nn.ModuleList([plain[0], norm])
    assert "has no condition" in cvae("convert", file, "--config", "robot", "--name", "x").good().err
    converted = open_run("x", FP32).model
    assert isinstance(converted, SVG)
    expected = rolled(model, torch.zeros(2, 5, 0))
    np.testing.assert_allclose(rolled(converted, torch.randn(2, 5, 7)), expected, atol=1e-6)


# --- an ordinary run ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("coarse_figures")
def test_the_other_commands_take_a_converted_run() -> None:
    data = write_set(Path("data"))
    model = PoseCVAE(PoseConfig(frame_dim=8, label_dim=2, z_dim=4, fusion_dim=8), (3, 8, 8))
    file, size = course_file(Path("x.ckpt"), model), ["data.height=8", "data.width=8"]
    cvae("convert", file, "--config", "cyclical", f"data.root={data}", *size, *FP32, "--name", "x").good()
    cvae("validate", "x").good()
    cvae("predict", "x", "--out", "x.gif").good()
    cvae("plot", "psnr", "x").good()
    cvae("export-gif", "x", "--out", "panels.gif").good()
    cvae("report", "x").good()
    assert Path("x.gif").is_file() and Path("panels.gif").is_file()
    assert Path("runs/x/eval/val/metrics.json").is_file() and Path("runs/x/report.html").is_file()
    with pytest.raises(UserError, match="only weights"):
        cvaecli.resume("runs/x")


# --- nothing runs -------------------------------------------------------------------------------------

HEADER = b"".join(
    pickle.dumps(part, 2)
    for part in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})
)
"""The start of a file from before version 1.6; content and keys follow."""


def touch(path: str) -> None:
    Path(path).touch()


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Builds:
    """Pickles as an object whose state is another call."""

    def __reduce__(self) -> Any:
        return (
            argparse.Namespace,
            (),
            {"inner": Calls(os.system, "touch ran"), "__setstate__": Calls(touch, "ran")},
        )


MALICIOUS = {
    "reduce": pickle.dumps(Calls(os.system, "touch ran"), 2),
    "stack global": pickle.dumps(Calls(os.system, "touch ran"), 4),
    "text protocol": pickle.dumps(Calls(os.system, "touch ran"), 0),
    "import": b"cevil\nname\n.",
    "exec": pickle.dumps(Calls(exec, "open('ran', 'w')"), 2),
    "nested reduce": pickle.dumps({"a": [Calls(getattr, Calls(__import__, "os"), "system")]}, 2),
    "call of a result": b"c__builtin__\ngetattr\n(cos\nsystem\nV__call__\ntRVtouch ran\n\x85R.",
    "build": pickle.dumps(Builds(), 2),
    "build on a class": b"\x80\x02cos\nsystem\n}Vx\ncos\nsystem\nVtouch ran\n\x85Rsb.",
    "slots": b"\x80\x02cposix\nuname\n)RN}V__class__\ncos\nsystem\ns\x86b.",
    "inst": b"(Vtouch ran\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nVtouch ran\no.",
    "new object": b"\x80\x02cos\nsystem\nVtouch ran\n\x85\x81.",
    "persistent id": b"\x80\x02Vmodule\ncos\nsystem\n\x86QVtouch ran\n\x85R.",
    "persistent text": b"Pcos\n.",
    "module source": b"\x80\x02(Vmodule\ncos\nsystem\nVx.py\nVopen('ran', 'w')\ntQVtouch ran\n\x85R.",
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_malicious_pickle_runs_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("x.pth").write_bytes(HEADER + MALICIOUS[name] + pickle.dumps([], 2))
    Path("evil.py").write_text("open('ran', 'w')")
    monkeypatch.syspath_prepend(".")
    try:
        content = InertFile(Path("x.pth")).content
    except UserError as error:
        assert "not a file of torch.save" in str(error)
    else:
        assert only_inert(content)
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["reduce", "stack global", "text protocol", "exec", "inst", "obj"])
def test_those_pickles_are_really_malicious(name: str) -> None:
    """For an ordinary unpickler; otherwise the test above would show nothing."""
    pickle.loads(MALICIOUS[name])
    assert Path("ran").exists()


def only_inert(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(only_inert, [*value, *value.values()]))
    if isinstance(value, list | tuple):
        return all(map(only_inert, value))
    if isinstance(value, Record):
        return all(map(only_inert, (value.arguments, value.state, value.entries, value.elements)))
    return isinstance(value, str | int | float | bytes | None) or (
        isinstance(value, type) and issubclass(value, Record)
    )


def test_a_malicious_svg_file_gives_its_tensors_and_runs_nothing() -> None:
    model = small_svg()
    file = svg_file(Path("model.pth"), model, size=16)
    with zipfile.ZipFile(file) as archive:
        names = {name: archive.read(name) for name in archive.namelist()}
    (main,) = (name for name in names if name.endswith("data.pkl"))
    assert names[main][2:3] == b"}", "the content is a dict, into which a call is put"
    names[main] = names[main][:3] + b"Vbad\ncos\nsystem\nVtouch ran\n\x85Rs" + names[main][3:]
    with zipfile.ZipFile("bad.pth", "w") as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    cvae("convert", "bad.pth", "--config", "robot", "--name", "x").good()
    assert not Path("ran").exists()
    state = open_run("x", FP32).model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


# --- files that cannot be used ------------------------------------------------------------------------


def stored(tensor: bytes) -> bytes:
    """A file whose content is a dict with one tensor of a storage of four floats."""
    storage = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nK\x04NtQ"
    content = b"\x80\x02}Vx\nctorch._utils\n_rebuild_tensor_v2\n(" + storage + tensor + b"\x89NtRs."
    return HEADER + content + pickle.dumps(["0"], 2) + struct.pack("<q", 4) + bytes(16)


def test_a_tensor_is_read() -> None:
    Path("x.pth").write_bytes(stored(b"K\x01K\x03\x85K\x01\x85"))
    file = InertFile(Path("x.pth"))
    assert isinstance(file.content, dict)
    tensor = file.tensor(file.content["x"])
    assert tensor is not None and torch.equal(tensor, torch.zeros(3))


@pytest.mark.parametrize(
    "tensor",
    [b"K\x02K\x03\x85K\x01\x85", b"K\x00K\x09\x85K\x01\x85", b"J\xff\xff\xff\xffK\x01\x85K\x01\x85", b"NNN"],
    ids=["behind the end", "too long", "negative", "no numbers"],
)
def test_a_tensor_outside_its_storage_is_refused(tensor: bytes) -> None:
    Path("x.pth").write_bytes(stored(tensor))
    file = InertFile(Path("x.pth"))
    assert isinstance(file.content, dict)
    with pytest.raises(UserError, match="damaged tensor"):
        file.tensor(file.content["x"])


def test_modules_without_end_are_refused() -> None:
    module = Record()
    module.state = {"_modules": {"a": module, "b": module}}
    Path("x.pth").write_bytes(stored(b"K\x00K\x01\x85K\x01\x85"))
    with pytest.raises(UserError, match="more than 10000 modules"):
        InertFile(Path("x.pth")).state_dict(module)


@pytest.mark.parametrize(
    ("content", "config", "message"),
    [
        (b"hello", "robot", "not a file of torch.save"),
        (b"PK\x03\x04hello", "robot", "not a file of torch.save"),
        (stored(b"K\x00K\x01\x85K\x01\x85")[:-3], "robot", "not a file of torch.save"),
        (stored(b"K\x00K\x01\x85K\x01\x85"), "robot", "not a file of the SVG code"),
        (b"hello", "cyclical", "not a checkpoint"),
        (b"hello", "reference", "no other program's files"),
        (None, "robot", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_leaves_nothing(content: bytes | None, config: str, message: str) -> None:
    if content is not None:
        Path("x.pth").write_bytes(content)
    result = cvae("convert", "x.pth", "--config", config).wrong(message)
    assert len(result.err.splitlines()) == 1 and not Path("runs").exists()


def test_an_svg_file_of_other_sizes_is_refused() -> None:
    model = small_svg()
    model.encoder.c1[0].main[0] = nn.Conv2d(1, 4, 3)  # type: ignore[index]
    svg_file(Path("x.pth"), model, size=16)
    cvae("convert", "x.pth", "--config", "robot").wrong("is [4, 1, 3, 3] instead of [4, 3, 3, 3]")


def test_zip_entries_of_another_size_are_refused() -> None:
    buffer = io.BytesIO()
    torch.save({"x": torch.zeros(4)}, buffer)
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile("x.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    with pytest.raises(UserError, match="damaged, or not a file"):
        InertFile(Path("x.pth"))
