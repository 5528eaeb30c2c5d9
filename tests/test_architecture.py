"""The structure of the package: imports point one way, and a model is one file."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import CPU, make_clip, make_config

import cvaecli
import cvaecli.models
from cvaecli import api
from cvaecli.config import loading as config
from cvaecli.data.kinds import KINDS
from cvaecli.engine.evaluate import evaluate
from cvaecli.engine.events import StepEvent
from cvaecli.engine.fit import Trainer

PACKAGE = Path(cvaecli.__file__).parent

FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
"""Modules by their name within the package; the package itself is ``__init__``."""


def imports(name: str, late: bool = True) -> Iterator[str]:
    """What a module imports: names within the package begin with a dot. ``late``: in functions too."""
    path = FILES[name]
    package = name.split(".") if path.name == "__init__.py" and name != "__init__" else name.split(".")[:-1]
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8")), late):
        if isinstance(node, ast.Import):
            yield from (_within(alias.name) for alias in node.names)
        elif node.level:
            base = package[: len(package) - node.level + 1]
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from _members(module, node)
        elif node.module and node.module.split(".")[0] == "cvaecli":
            yield from _members(node.module.removeprefix("cvaecli").removeprefix("."), node)
        elif node.module:
            yield node.module


def _members(module: str, node: ast.ImportFrom) -> Iterator[str]:
    """``from x import y``: the module y where it is one, else x."""
    for alias in node.names:
        inner = f"{module}.{alias.name}".lstrip(".")
        yield "." + (inner if inner in FILES else module or "__init__")


def _within(name: str) -> str:
    return "." + name.removeprefix("cvaecli.") if name.startswith("cvaecli.") else name


def _nodes(tree: ast.AST, late: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (n for part in node.orelse for n in _nodes(part, late))
        elif late or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _nodes(node, late)


def layer(module: str) -> str:
    return module.lstrip(".").split(".")[0]


def test_the_scan_sees_imports() -> None:
    assert set(imports("api.preparation")) >= {".engine.fit", ".api.loading", "torch", ".errors"}
    assert ".checkpoint" in set(imports("api.training"))
    assert ".api" in set(imports("cli.train")) and ".api" not in set(imports("cli.train", late=False))
    assert ".engine.events" not in set(imports("cli.console")), "only named in types"


ALLOWED = {
    "engine": {
        "data",
        "config",
        "engine",
        "errors",
        "metrics",
        "models",
        "objective",
        "schedules",
        "seeding",
        "terms",
    },
    "models": {"errors", "models", "settings", "tensor_files"},
    "objective": {"models"},
    "metrics": set(),
    "schedules": {"config"},
    "seeding": set(),
    "terms": set(),
    "errors": set(),
    "reporter": set(),
    "signals": {"errors"},
    "files": {"errors"},
    "tables": {"errors"},
    "tensor_files": set(),
    "evaluations": {"errors", "files", "tables"},
    "run": {"errors", "config", "files", "terms"},
    "settings": set(),
    "checkpoint": {"config", "data", "errors", "files", "run", "tensor_files"},
    "config": {"config", "data", "errors", "models", "settings"},
    "sweeping": {"config", "errors", "files", "run", "sweeping"},
    "data": {"data", "errors"},
    "pages": {"errors", "evaluations", "files", "media", "pages", "plots", "tables"},
    "synthetic": {"data", "errors", "files", "synthetic"},
    "importing": {"config", "data", "errors", "files", "importing", "media", "reporter", "synthetic"},
}
"""Layers and the layers that they may import."""

ABOVE = {"cli", "api", "__main__"}
"""What nothing but itself and the entry points may import."""


@pytest.mark.parametrize("name", FILES)
def test_arrows_point_one_way(name: str) -> None:
    inside = {layer(module) for module in imports(name) if module.startswith(".")}
    mine = layer(name)
    if mine in ALLOWED:
        assert inside <= ALLOWED[mine], f"{name} must not import {sorted(inside - ALLOWED[mine])}"
    if mine not in ABOVE | {"__init__"}:
        assert not inside & ABOVE, f"{name} must not import {sorted(inside & ABOVE)}"
    if mine == "api":
        assert "cli" not in inside


def test_config_takes_from_data_the_declared_kinds_alone() -> None:
    taken = {module for name in FILES if layer(name) == "config" for module in imports(name)}
    assert {module for module in taken if layer(module) == "data"} == {".data.kinds"}
    assert {m for m in imports("data.kinds", late=False) if m.startswith(".")} == set(), "it stays light"


def test_built_in_sets_are_made_of_data_and_named_by_their_kind() -> None:
    """The arrow between the two: synthetic imports data; data imports a generator by its declared name."""
    assert "data" in {layer(m) for name in FILES if layer(name) == "synthetic" for m in imports(name)}
    for kind in KINDS.values():
        assert kind.built_in.module.removeprefix("cvaecli.") in FILES
        assert layer(kind.built_in.module.removeprefix("cvaecli.")) == "synthetic"


def test_there_are_no_circles() -> None:
    arrows = {name: {m[1:] for m in imports(name) if m.startswith(".")} - {name} for name in FILES}
    arrows.pop("__init__")  # looks its names up when they are asked for
    while leaves := [name for name, targets in arrows.items() if not targets & arrows.keys()]:
        for name in leaves:
            del arrows[name]
    assert not arrows, f"these import each other: {arrows}"


@pytest.mark.parametrize("name", FILES)
def test_what_is_imported_from_elsewhere(name: str) -> None:
    outside = {module.split(".")[0] for module in imports(name) if not module.startswith(".")}
    assert "click" not in outside, "Typer carries its own"
    assert "rich" not in outside or name == "cli.console"
    assert "typer" not in outside or layer(name) == "cli"
    if layer(name) in ("schedules", "objective", "metrics", "seeding"):
        heavy = outside - sys.stdlib_module_names - {"torch", "numpy", "torchmetrics"}
        assert not heavy, f"{name} imports {heavy}"
    at_the_top = {module.split(".")[0] for module in imports(name, late=False)}
    if layer(name) in ("cli", "config", "run", "errors", "schedules", "terms", "__init__", "__main__"):
        assert not at_the_top & {"torch", "torchvision", "matplotlib", "imageio", "torchmetrics", "skimage"}
    assert not at_the_top & {"torchmetrics", "skimage", "imageio", "imageio_ffmpeg"}, (
        "import it where it is used"
    )


@pytest.mark.parametrize("name", FILES)
def test_no_file_can_run_code_that_it_reads(name: str) -> None:
    text = FILES[name].read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in ("pickle.load", "pickle.loads", "eval", "exec", "yaml.unsafe_load", "os.system")
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called == "torch.load":
            assert keywords.get("weights_only") == "True", f"{name}: {ast.unparse(node)}"
        if called.endswith("np.load"):
            assert keywords.get("allow_pickle", "False") == "False"
        assert keywords.get("shell", "False") == "False"


# --- a model is one file ------------------------------------------------------------------------------

COMMON = """
import torch
from typing import Literal
from torch import nn
from cvaecli.models.base import Gaussian, ModelConfig, Step, VideoCVAE
"""

RECURRENT = (
    COMMON
    + """
class Config(ModelConfig):
    name: Literal["toy_recurrent"] = "toy_recurrent"
    width: int = 6

class Toy(VideoCVAE):
    Config = Config
    def __init__(self, config, condition_shape):
        super().__init__()
        self.config, self.size = config, condition_shape[1:]
        pixels = 3 * self.size[0] * self.size[1]
        self.cell = nn.LSTMCell(2 * pixels + 3, config.width)
        self.q = nn.Linear(2 * pixels, 6)
        self.out = nn.Linear(config.width, pixels)
    def noise_shapes(self, size):
        return [(3,)]
    def encode(self, condition, targets=None):
        features = {"c": condition.flatten(2)}
        if targets is not None:
            mu, logvar = self.q(torch.cat([targets.flatten(2), condition.flatten(2)], -1)).chunk(2, -1)
            features |= {"mu": mu, "logvar": logvar}
        return features
    def start(self, past, condition):
        zeros = past.new_zeros(past.shape[0], self.config.width)
        state = (zeros, zeros)
        for k in range(past.shape[1] - 1):
            z = past.new_zeros(past.shape[0], 3)
            state = self.cell(torch.cat([past[:, k].flatten(1), condition[:, k + 1].flatten(1), z], 1), state)
        return state
    def step(self, state, x_prev, features, noise, posterior):
        zeros = torch.zeros_like(noise[0])
        p = Gaussian(zeros, zeros)
        q = (Gaussian(features["mu"], features["logvar"]),) if posterior else ()
        z = q[0].sample(noise[0]) if posterior else noise[0]
        state = self.cell(torch.cat([x_prev.flatten(1), features["c"], z], 1), state)
        return Step(torch.sigmoid(self.out(state[0])).view(-1, 3, *self.size), q, (p,)), state

MODEL = Toy
"""
)

PARALLEL = (
    COMMON
    + """
class Config(ModelConfig):
    name: Literal["toy_parallel"] = "toy_parallel"

class Toy(VideoCVAE):
    Config = Config
    parallel = True
    sampling = "pairs"
    def __init__(self, config, condition_shape):
        super().__init__()
        self.net = nn.Conv2d(8, 3, 3, padding=1)
        self.prior = nn.Conv2d(3, 4, 1)
    def noise_shapes(self, size):
        return [(2, *size), (1,)]
    def encode(self, condition, targets=None):
        return {"c": condition} | ({} if targets is None else {"x": targets})
    def start(self, past, condition):
        return past[:, -1]
    def step(self, state, x_prev, features, noise, posterior):
        mu, logvar = self.prior(features["c"]).chunk(2, 1)
        zeros = torch.zeros_like(noise[1])
        p = (Gaussian(mu, logvar), Gaussian(zeros, zeros))
        q = (Gaussian(mu + features["x"].mean(), logvar), p[1]) if posterior else ()
        z = (q or p)[0].sample(noise[0])
        return Step(state + self.net(torch.cat([state, features["c"], z], 1)), q, p), state

MODEL = Toy
"""
)


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two more models, each a file beside the others."""
    (tmp_path / "toy_recurrent.py").write_text(RECURRENT)
    (tmp_path / "toy_parallel.py").write_text(PARALLEL)
    monkeypatch.setattr(cvaecli.models, "__path__", [*cvaecli.models.__path__, str(tmp_path)])
    yield
    for name in ("toy_recurrent", "toy_parallel"):
        sys.modules.pop(f"cvaecli.models.{name}", None)


@pytest.mark.parametrize("name", ["toy_recurrent", "toy_parallel"])
@pytest.mark.parametrize("n_past", [1, 2])
def test_another_model_is_one_file(toys: None, name: str, n_past: int) -> None:
    raw = make_config(data={"n_past": n_past}, train={"max_steps": 2, "log_every": 1}).to_dict()
    raw = {**raw, "model": {"name": name}, "teacher_forcing": None}
    settings = config.from_dict(raw)
    assert (settings.teacher_forcing is None) == (name == "toy_parallel")
    assert config.from_dict(settings.to_dict()) == settings
    model = api.loading.build_model(settings, (3, 8, 8))
    before = [p.detach().clone() for p in model.parameters()]
    clips = [make_clip(12, "a"), make_clip(12, "b", seed=1)]
    trainer = Trainer(model, settings, CPU, clips, [make_clip(6, "v", seed=2)])
    steps = [event for event in trainer.events() if isinstance(event, StepEvent)]
    assert [event.step for event in steps] == [1, 2] and all(event.terms for event in steps)
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    scores = [
        evaluate(trainer.model, clips, CPU, settings.eval.model_copy(update={"chunk": chunk}), n_past=n_past)
        for chunk in (2, 64)
    ]
    assert scores[0].summary()["psnr"] == pytest.approx(scores[1].summary()["psnr"], abs=1e-4)
    assert scores[0].summary()["frames"] == 2 * (12 - n_past)
