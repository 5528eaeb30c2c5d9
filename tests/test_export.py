"""``cvae export``: files that predict what PyTorch predicts, for programs without this tool."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import cvae, small_overrides, write_set

import cvaecli
from cvaecli import checkpoint as checkpoints
from cvaecli.api import exporting, prediction
from cvaecli.api.exporting import Exported
from cvaecli.api.loading import build_model, open_run
from cvaecli.config import loading as config
from cvaecli.errors import UserError
from cvaecli.run import Run

pytest.importorskip("onnxruntime", reason='ONNX is not installed: pip install -e ".[onnx]"')
pytest.importorskip("onnxscript", reason='ONNX is not installed: pip install -e ".[onnx]"')

CONFIGS = {
    "reference": "reference",
    "anchored": "anchored",
    "arm": "quickstart-robot",
    "pose": "cyclical",
    "svg": "robot",
}
"""Built-in configs by the name of their run here."""
FILES = {
    "reference": ["model.onnx"],
    "anchored": ["start.onnx", "step.onnx"],
    "arm": ["start.onnx", "step.onnx"],
    "pose": ["step.onnx"],
    "svg": ["start.onnx", "step.onnx"],
}
"""ONNX files by run."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each model with its initial weights, on tiny data."""
    folder = tmp_path_factory.mktemp("runs")
    dance = write_set(folder / "dance", size=16)
    sizes = ("--height", "16", "--width", "16", "--train-clips", "3", "--test-clips", "2")
    cvae("data", "synth", folder / "robot", "--kind", "robot", *sizes).good()
    for name, file in CONFIGS.items():
        arm = config.load(file).data.kind == "robot"
        root, shape = (folder / "robot", [7]) if arm else (dance, [3, 16, 16])
        settings = config.load(file, [*small_overrides(file), f"data.root={root}"])
        model = build_model(settings, shape)
        run = Run.create(folder / "runs", name, name)
        run.write_config(settings)
        entries = {"config": settings.to_yaml(), "condition_shape": shape, "epoch": 0, "step": 0}
        checkpoints.save(run, "last", {"format": 1, "model": model.state_dict(), **entries})
    return folder / "runs"


@pytest.fixture(scope="module")
def exported(runs: Path) -> dict[str, Exported]:
    """The ONNX files of each run, in its folder."""
    return {name: cvaecli.export(runs / name) for name in FILES}


@pytest.mark.parametrize("model", FILES)
def test_onnx_files_predict_what_pytorch_predicts(model: str, exported: dict[str, Exported]) -> None:
    found = exported[model]
    folder = found.files[0].parent
    names = sorted(path.name for path in folder.iterdir())
    assert names == FILES[model] == sorted(path.name for path in found.files)
    assert folder.parts[-2:] == (model, "export")
    assert found.differences["onnx"] <= 1e-4 and found.frames >= 12


def test_an_onnx_file_says_how_it_is_used(exported: dict[str, Exported]) -> None:
    import onnx

    step = onnx.load(next(path for path in exported["svg"].files if path.name == "step.onnx"))
    notes = {entry.key: entry.value for entry in step.metadata_props}
    inputs = json.loads(notes["inputs"])
    assert [found.name for found in step.graph.input] == list(inputs)
    assert inputs["previous"] == [3, 16, 16] and inputs["condition"] == [7] and inputs["noise_0"] == [4]
    assert (notes["model"], notes["graph"], notes["n_past"]) == ("svg", "step", "2")
    assert (
        "0..1" in notes["protocol"] and config.from_dict(config.parse_yaml(notes["config"], "x")).seed == 42
    )
    outputs = [found.name for found in step.graph.output]
    assert outputs[0] == "frame" and all(re.fullmatch(r"next_state_\d+", name) for name in outputs[1:])
    assert all(found.type.tensor_type.shape.dim[0].dim_param for found in step.graph.input), "any batch"


def test_the_other_formats(runs: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    found = cvaecli.export(runs / "pose", formats=["pt2", "safetensors"], out=tmp_path)
    assert [path.name for path in found.files] == ["step.pt2", "model.safetensors"], "it has no state"
    assert found.differences["pt2"] <= 1e-5
    state = open_run(runs / "pose", ["runtime.precision=fp32"]).model.state_dict()
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(state) and file.metadata()["model"] == "pose"
        assert all(torch.equal(file.get_tensor(name), state[name]) for name in state)


def test_the_documents_example_needs_no_torch(
    runs: Path, exported: dict[str, Exported], tmp_path: Path
) -> None:
    """It predicts what the tool predicts, in a process in which torch cannot be imported."""
    folder = exported["anchored"].files[0].parent
    exact = ["eval.prior=mean", "runtime.precision=fp32"]
    (video,) = cvaecli.predict(runs / "anchored", exact, out=tmp_path / "x.npz")
    page = (Path(__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    root = open_run(runs / "anchored", []).config.data.root
    example = example.replace("DIR", str(root)).replace("630", "7")
    start = "import sys; sys.modules['torch'] = sys.modules['cvaecli'] = None\n"
    end = f"\nnp.save({str(tmp_path / 'frames.npy')!r}, frames)\n"
    subprocess.run([sys.executable, "-c", start + example + end], cwd=folder, check=True, timeout=600)
    with np.load(video) as file:
        expected = file["frames"][1:].astype(int)
    frames = np.moveaxis(np.load(tmp_path / "frames.npy"), 1, -1)
    assert frames.shape == expected.shape
    assert np.abs(frames * 255 - expected).max() < 1


def test_a_file_that_does_not_agree_is_not_left(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = exporting._pt2_call

    def wrong(path: Path) -> Any:
        right = call(path)
        return lambda inputs: {name: value + 1e-3 for name, value in right(inputs).items()}

    monkeypatch.setattr(exporting, "_pt2_call", wrong)
    result = cvae("export", runs / "svg", "--format", "pt2", "--out", tmp_path / "new")
    result.wrong("differ by 0.001", code=1)
    assert not list(tmp_path.iterdir()), "no file, and no folder that was not there"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--format", "tflite"], "there are: onnx, pt2, safetensors"), (["nothing"], "no such run")],
)
def test_wrong_arguments(arguments: list[str], message: str, tmp_path: Path) -> None:
    cvae("export", *arguments, "--out", tmp_path / "out").wrong(message)
    assert not (tmp_path / "out").exists()


def test_wrong_overrides_and_data(runs: Path, tmp_path: Path) -> None:
    out = "--out", tmp_path / "out"
    for key, message in (
        ("eval.samples=7", "eval.samples: is fixed"),
        ("runtime.device=cpu", "runtime.device: is fixed"),
        ("data.partial=0.5", "data.partial: has no effect here"),
    ):
        cvae("export", runs / "pose", *out, key).wrong(message)
    short = write_set(tmp_path / "short", train=2, val=2, size=16)
    with pytest.raises(UserError, match="no clip has 3 given frames"):
        cvaecli.export(runs / "pose", ["data.n_past=3", f"data.root={short}"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    cvae("export").wrong("onnxruntime is not installed", 'pip install -e ".[onnx]"')


@pytest.mark.parametrize("model", FILES)
def test_predict_by_onnx_files(
    model: str, runs: Path, exported: dict[str, Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same frames from the same noise, in pieces of two, for two rows at once."""
    seen: dict[str, list[torch.Tensor]] = {"rollout": [], "played": []}

    def watch(name: str) -> None:
        plain = getattr(prediction, name)

        def watched(*arguments: Any) -> Any:
            for piece in plain(*arguments):
                seen[name].append(piece)
                yield piece

        monkeypatch.setattr(prediction, name, watched)

    watch("rollout")
    watch("played")
    options: dict[str, Any] = {"split": "val", "samples": 2, "frames": 7}
    exact = ["runtime.device=cpu", "runtime.precision=fp32"]
    expected = cvaecli.predict(runs / model, ["eval.chunk=2", *exact], out=tmp_path / "torch.npz", **options)
    found = cvaecli.predict(
        runs / model, ["eval.chunk=2"], out=tmp_path / "onnx.npz", backend="onnx", **options
    )
    assert [piece.shape for piece in seen["rollout"]] == [piece.shape for piece in seen["played"]]
    assert len(seen["played"]) >= 3 and seen["played"][0].shape[:2] == (2, 2)
    for one, other in zip(*seen.values(), strict=True):
        assert (one - other).abs().max() <= 1e-4
    for one_file, other_file in zip(expected, found, strict=True):
        with np.load(one_file) as one_video, np.load(other_file) as other_video:
            gap = one_video["frames"].astype(int) - other_video["frames"].astype(int)
        assert gap.shape[0] == 7 and np.abs(gap).max() <= 1, "a level of rounding at most"


@pytest.fixture
def svg(runs: Path, exported: dict[str, Exported], tmp_path: Path) -> Path:
    """A copy of the svg run with its files."""
    return Path(shutil.copytree(runs / "svg", tmp_path / "svg"))


def refusal(run: Path, *overrides: str) -> str:
    """The one line with which ``predict --backend onnx`` refuses."""
    result = cvae("predict", run, "--backend", "onnx", "--out", run / "x.npz", *overrides).wrong()
    assert not (run / "x.npz").exists()
    return " ".join(result.err.split())


@pytest.mark.parametrize("name", ["start.onnx", "step.onnx"])
def test_predict_refuses_missing_and_damaged_files(name: str, svg: Path) -> None:
    command = f"cvae export {svg} --format onnx"
    (svg / "export" / name).write_bytes(b"no graph")
    assert command in (line := refusal(svg)) and f"{name}: damaged" in line
    (svg / "export" / name).unlink()
    assert command in (line := refusal(svg)) and f"{name}: no such file" in line


def test_predict_refuses_files_for_other_weights_or_frames(svg: Path) -> None:
    command = f"cvae export {svg} --format onnx"
    line = refusal(svg, "data.height=32", "data.width=32")
    assert f"{command} data.height=32 data.width=32" in line and "[3, 16, 16], not [3, 32, 32]" in line
    assert f"{command} data.n_past=1" in (line := refusal(svg, "data.n_past=1")) and "n_past 2, not 1" in line
    saved = checkpoints.load(svg / "checkpoints" / "last.pt")
    next(iter(saved["model"].values())).add_(1)
    checkpoints.save(Run(svg), "last", saved)
    line = refusal(svg)
    assert command in line and f"not {checkpoints.fingerprint(saved)}" in line


def test_predict_refuses_files_without_the_average_over_flips(
    runs: Path, exported: dict[str, Exported], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(runs / "reference", tmp_path / "reference"))
    line = refusal(run, "eval.average_flips=false")
    assert "average_flips true, not false" in line
    assert f"cvae export {run} --format onnx eval.average_flips=false" in line


def test_predict_refuses_what_the_onnx_backend_lacks(svg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "runtime.device: has no effect" in refusal(svg, "runtime.device=cuda")
    assert "there are: pytorch, onnx" in refusal(svg, "--backend", "tflite")
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    assert 'onnxruntime is not installed (pip install -e ".[onnx]")' in refusal(svg)
