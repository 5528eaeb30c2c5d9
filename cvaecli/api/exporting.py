"""Files of a trained model for other programs: ONNX (read as well as written), torch.export, safetensors."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import checkpoint as checkpoints
from ..data.clip import Clip
from ..engine.batches import stacked
from ..engine.portable import Call, Floats, Graph, graphs, played
from ..engine.rollout import prior_noise, rollout
from ..errors import CvaeError, UserError
from ..files import replacing
from ..reporter import Reporter, Silent
from .loading import RUNS, TRAINING_ONLY, Opened, load_run_data, open_run, refuse_overrides

FORMATS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": (), "safetensors": ("safetensors",)}
"""Formats by the suffix of their files, and the packages that each needs. The extra ``onnx`` installs
these."""

TOLERANCE = 1e-4
"""Largest difference that a file's predictions may have from PyTorch's, white being 1."""
CHECKED_ROWS, CHECKED_FRAMES = 3, 8
"""Videos that a file predicts before it is left there, and predicted frames of each."""
EXAMPLE_ROWS = 2
"""Rows of the example that a graph is traced with: another number than in the check."""
OPSET = 20

PROTOCOL = (
    "Frames and label images are float32, RGB, 0..1, axes (batch, channel, height, width); 'past' has a time "
    "axis after the batch axis. 'condition' is that of the frame to predict; 'past_condition' belongs to the "
    "given frames. Graph 'model' predicts every frame from the given ones alone. Graph 'step' gets every "
    "predicted frame, as it is, as 'previous' of the next step; clip frames to 0..1 only to show them. "
    "Outputs 'next_state_N' are the next step's 'state_N'; the other states stay as 'start' gave them. "
    "Noise is standard normal; zeros give the mean of the prior."
)
"""How the graphs are used, for their metadata."""


class Exported(NamedTuple):
    """What ``export`` wrote.

    Attributes:
        files: their paths.
        differences: for each format with graphs, the largest difference from PyTorch's predictions on the
            run's own clips, white being 1.
        frames: number of frames that were compared.
    """

    files: list[Path]
    differences: dict[str, float]
    frames: int


def export(
    run: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    formats: Sequence[str] = ("onnx",),
    out: Path | None = None,
    runs: Path = RUNS,
    reporter: Reporter | None = None,
) -> Exported:
    """Write a run's model for programs without this tool.

    ``onnx`` and ``pt2`` files hold graphs (see ``engine.portable``). First they predict some frames of the
    run's own clips; they are left there only if they agree with PyTorch. ``safetensors`` holds the weights.

    Args:
        run: see ``run.find``.
        overrides: of data.*, seed, eval.average_flips and runtime.threads.
        formats: some of ``FORMATS``.
        out: folder for the files; ``RUN/export`` when unset. Files of the same name are replaced.

    Raises:
        UserError: an unknown format, a package that is not installed, no such run, or no data.
        CvaeError: the files do not agree with PyTorch; nothing is written.
    """
    reporter = reporter or Silent()
    refuse_overrides(overrides, ("data.", "seed", "eval.average_flips", "runtime.threads"), TRAINING_ONLY)
    formats = list(dict.fromkeys(formats))
    for name in formats:
        _require(name)
    opened = open_run(run, [*overrides, "runtime.device=cpu", "runtime.precision=fp32"], runs)
    opened.model.to(memory_format=torch.contiguous_format).requires_grad_(False)
    folder = opened.run.path / "export" if out is None else Path(out)
    files: list[Path] = []
    differences: dict[str, float] = {}
    sample = _sample(opened, reporter) if set(formats) - {"safetensors"} else None
    with ExitStack() as stack:
        if not folder.exists():
            stack.callback(_remove_if_empty, folder)

        def new(name: str) -> Path:
            files.append(folder / name)
            return stack.enter_context(replacing(files[-1]))

        for name in formats:
            with reporter.task(f"Exporting {opened.run.name} to {name}"):
                if sample is None or name == "safetensors":
                    _write_weights(opened, new("model.safetensors"))
                else:
                    differences[name] = _write_graphs(name, opened, sample, new)
    return Exported(files, differences, 0 if sample is None else sample.expected[..., 0, 0, 0].size)


def _write_graphs(name: str, opened: Opened, sample: _Sample, new: Callable[[str], Path]) -> float:
    """Write the graphs in a format to the files that ``new`` makes, and compare them with PyTorch.

    Returns:
        The largest difference.

    Raises:
        CvaeError: it is above ``TOLERANCE``.
    """
    write, load = (_write_onnx, onnx_call) if name == "onnx" else (_write_pt2, _pt2_call)
    calls = {}
    for graph in graphs(opened.model, sample.past[:EXAMPLE_ROWS], sample.conditions[:EXAMPLE_ROWS]):
        path = new(f"{graph.name}.{name}")
        write(graph, path, _metadata(opened, graph))
        calls[graph.name] = load(path)
    difference = _difference(calls, sample)
    if not difference <= TOLERANCE:  # also if it is NaN
        raise CvaeError(
            f"{name}: predictions differ by {difference:.2g} from PyTorch's, more than {TOLERANCE:g}",
            "nothing was written",
        )
    return difference


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _require(name: str) -> None:
    if name not in FORMATS:
        raise UserError(f"--format {name}: no such format", f"there are: {', '.join(FORMATS)}")
    _require_packages(f"--format {name}", FORMATS[name])


def _require_packages(option: str, packages: Sequence[str]) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise UserError(f"{option}: {', '.join(missing)} is not installed", 'pip install -e ".[onnx]"')


# --- what files are checked with ----------------------------------------------------------------------


class _Sample(NamedTuple):
    """Frames of the run's own clips, and what PyTorch predicts.

    Attributes:
        past: ``[B, n_past, C, H, W]``.
        conditions: ``[B, n_past + K, ...]``.
        noise: ``[B, K, *shape]`` for each latent level.
        expected: ``[B, K, C, H, W]``.
    """

    past: Tensor
    conditions: Tensor
    noise: list[Tensor]
    expected: Floats


def _sample(opened: Opened, reporter: Reporter) -> _Sample:
    """The first clips, again from the first where there are fewer than ``CHECKED_ROWS``; each row has its own
    noise."""
    config, n_past = opened.config, opened.config.data.n_past
    data = load_run_data(opened, (), reporter)
    found: list[Clip] = [clip for clips in data.splits.values() for clip in clips if clip.n_frames >= n_past]
    if not found:
        raise UserError(f"{data.source}: no clip has {n_past} given frames", "see cvae data check")
    clips = [found[row % len(found)] for row in range(CHECKED_ROWS)]
    K = min(CHECKED_FRAMES, *(clip.n_steps - n_past for clip in clips))
    if K < 1:
        raise UserError(f"{data.source}: a clip has no frame to predict", "give longer clips")

    past = stacked([clip.frames[:n_past] for clip in clips], opened.device.torch)
    conditions = stacked([clip.condition[: n_past + K] for clip in clips], opened.device.torch)
    names = [f"export/{row}" for row in range(len(clips))]
    size = (past.shape[-2], past.shape[-1])
    noise = prior_noise(opened.model, names, size, prior="sample", seed=config.seed, n_past=n_past)
    pieces = rollout(
        opened.model, past, conditions[:, :n_past], [conditions[:, n_past:]], noise, opened.device
    )
    expected = torch.cat(list(pieces), 1).numpy()
    return _Sample(past, conditions, list(noise(0, K)), expected)


def _difference(calls: Mapping[str, Call], sample: _Sample) -> float:
    """The largest difference from PyTorch's prediction, relative to its largest value if that is above 1."""
    n_past = sample.past.shape[1]
    given, rest = sample.conditions[:, :n_past], sample.conditions[:, n_past:]
    pieces = played(calls, sample.past, given, [rest], lambda first, count: sample.noise)
    found = torch.cat(list(pieces), 1).numpy()
    return float(np.abs(found - sample.expected).max() / max(1.0, float(np.abs(sample.expected).max())))


# --- formats ------------------------------------------------------------------------------------------


def _metadata(opened: Opened, graph: Graph) -> dict[str, str]:
    """What a reader of the file needs to know, as text."""
    shapes = {name: list(value.shape[1:]) for name, value in graph.inputs.items()}
    return {
        "tool": f"cvae {version('cvae')}",
        "model": opened.config.model_name,
        "graph": graph.name,
        **_identity(opened),
        "inputs": json.dumps(shapes),
        "protocol": PROTOCOL,
        "config": opened.config.to_yaml(),
    }


def _identity(opened: Opened) -> dict[str, str]:
    """The metadata that tie a graph to the weights, the frames and the averages that it was made for."""
    data = opened.config.data
    return {
        "checkpoint": checkpoints.fingerprint(opened.checkpoint),
        "n_past": str(data.n_past),
        "frame": json.dumps([3, data.height, data.width]),
        "average_flips": json.dumps(opened.config.eval.average_flips),
    }


def _write_onnx(graph: Graph, path: Path, metadata: Mapping[str, str]) -> None:
    with _quietly():
        program = torch.onnx.export(
            graph.exported(),
            input_names=list(graph.inputs),
            output_names=graph.outputs,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=False)


def onnx_call(path: Path, threads: int | None = None) -> Call:
    """An ONNX file as a function.

    Args:
        threads: of onnxruntime; PyTorch's number when unset.
    """
    return _call(_session(path, threads))


def onnx_calls(opened: Opened, again: str) -> dict[str, Call]:
    """The graphs in ``RUN/export`` as functions, by their names.

    Args:
        again: the command that writes the files, for the errors.

    Raises:
        UserError: a file is missing or damaged, or was not made of this checkpoint, number of given frames,
            frame size and eval.average_flips; or onnxruntime is not installed.
    """
    _require_packages("--backend onnx", ["onnxruntime"])
    wanted, calls = _identity(opened), {}
    for name in ["model"] if opened.model.parallel else ["step", "start"]:
        path = opened.run.path / "export" / f"{name}.onnx"
        if not path.is_file():
            raise UserError(f"{path}: no such file", again)
        try:
            session = _session(path)
        except Exception as error:  # onnxruntime has a dozen, without a common class
            raise UserError(f"{path}: damaged, or not an ONNX file", again) from error
        notes = session.get_modelmeta().custom_metadata_map
        for key, value in wanted.items():
            if notes.get(key) != value:
                raise UserError(f"{path}: is for {key} {notes.get(key, 'unknown')}, not {value}", again)
        calls[name] = _call(session)
        if not any(found.name.startswith("state_") for found in session.get_inputs()):
            break  # without a state there is no "start"
    return calls


def _session(path: Path, threads: int | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # its warnings are about its own optimiser
    return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def _call(session: Any) -> Call:
    names = [output.name for output in session.get_outputs()]
    wanted = [found.name for found in session.get_inputs()]

    def call(inputs: Mapping[str, Floats]) -> dict[str, Floats]:
        arrays = session.run(names, {name: inputs[name] for name in wanted})
        return dict(zip(names, arrays, strict=True))

    return call


def _write_pt2(graph: Graph, path: Path, metadata: Mapping[str, str]) -> None:
    names = {"inputs": json.dumps(list(graph.inputs)), "outputs": json.dumps(graph.outputs)}
    with _quietly(), path.open("wb") as file:
        torch.export.save(graph.exported(), file, extra_files={**metadata, **names})


def _pt2_call(path: Path) -> Call:
    extra: dict[str, Any] = {"inputs": "", "outputs": ""}
    with path.open("rb") as file:
        module = torch.export.load(file, extra_files=extra).module()
    inputs, outputs = json.loads(extra["inputs"]), json.loads(extra["outputs"])

    def call(arrays: Mapping[str, Floats]) -> dict[str, Floats]:
        with torch.inference_mode():
            found = module(*(torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in inputs))
        return {name: value.numpy() for name, value in zip(outputs, found, strict=True)}

    return call


def _write_weights(opened: Opened, path: Path) -> None:
    from safetensors.torch import save

    state = {name: value.contiguous() for name, value in opened.model.state_dict().items()}
    metadata = {
        "tool": f"cvae {version('cvae')}",
        "model": opened.config.model_name,
        "condition_shape": json.dumps(opened.checkpoint["condition_shape"]),
        "config": opened.config.to_yaml(),
    }
    path.write_bytes(save(state, metadata))


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's warnings, which are about its own parts."""
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
