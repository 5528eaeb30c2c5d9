"""Reading run configs: what is accepted, and what a user is told about the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cvaecli.config import loading as config
from cvaecli.config.schema import RunConfig
from cvaecli.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = config.builtin_names()


def override(*overrides: str, **raw: Any) -> RunConfig:
    return config.from_dict(raw, overrides)


def told(*overrides: str, **raw: Any) -> str:
    """What the user is told: message and hint in one line."""
    with pytest.raises(UserError) as caught:
        config.from_dict(raw, overrides)
    return f"{caught.value.message} {caught.value.hint}"


def write(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "run.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def told_of_file(tmp_path: Path, content: str | bytes) -> str:
    path = write(tmp_path, content)
    with pytest.raises(UserError) as caught:
        config.load(path)
    assert str(path) in caught.value.message
    return f"{caught.value.message} {caught.value.hint}"


# --- shipped configs ---------------------------------------------------------------------------------


def test_names_are_the_files() -> None:
    files = {path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml")}
    assert set(NAMES) == files
    assert {"cyclical", "monotonic", "none", "pose", "reports/pose-mixing"} <= files


@pytest.mark.parametrize("name", NAMES)
def test_shipped_config_loads_and_round_trips(name: str, tmp_path: Path) -> None:
    first = config.load(name)
    again = config.load(write(tmp_path, first.to_yaml()))
    assert again == first
    assert again.to_yaml() == first.to_yaml()
    assert config.from_dict(first.to_dict()) == first


@pytest.mark.parametrize("name", NAMES)
def test_shipped_config_explains_itself_and_fits_any_machine(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# "), "opens with what it is for"
    assert f"--config {name}" in text, "says how it is run"
    assert text.isascii() and text.endswith("\n") and not text.endswith("\n\n")
    run = config.load(name)
    assert run.data.root is None and run.runtime == config.from_dict({}).runtime


@pytest.mark.parametrize("name", NAMES)
def test_shipped_config_means_the_same_to_any_yaml_reader(name: str) -> None:
    """No ``off`` without quotes, no ``1e-4``: other tools read those otherwise."""
    plain = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    assert plain == config.parse_yaml((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"), name)


def test_annealing_configs_differ_in_the_kl_section_alone() -> None:
    runs = [config.load(name).to_dict() for name in ("cyclical", "monotonic", "none")]
    assert [run.pop("kl")["schedule"] for run in runs] == ["cyclical", "monotonic", "none"]
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("reports/pose-")])
def test_report_configs_share_the_template(name: str) -> None:
    run = config.load(name)
    assert (run.data.height, run.data.width, run.data.n_past) == (32, 64, 1)
    assert (run.train.batch_size, run.train.window, run.train.stride) == (2, 16, None)
    assert (run.train.shuffle, run.train.time_reduction, run.train.grad_clip) == (False, "sum", 1.0)
    assert run.train.save_every == 3
    assert run.optim == config.from_dict({}).optim  # Adam 1e-3, a tenth at epochs 2 and 5
    assert {k: v for k, v in run.model if k.endswith("_dim")} == {
        "frame_dim": 128,
        "label_dim": 32,
        "z_dim": 12,
        "fusion_dim": 192,
    }


def test_report_settings() -> None:
    runs = {name.removeprefix("reports/"): config.load(name) for name in NAMES if "reports/pose-" in name}
    for name, run in runs.items():
        model, forcing = run.model.model_dump(), run.teacher_forcing
        assert forcing is not None and forcing.coin == "epoch"
        mixing = name.startswith("pose-mixing")
        assert model["posterior"] == ("fed" if name.startswith("pose-scheduled") else "target")
        assert model["output"] == ("sigmoid" if mixing else "linear")
        assert (forcing.mode, forcing.detach) == (("blend", "unforced") if mixing else ("replace", "off"))
        assert run.train.epochs == (27 if mixing else 50)
        assert (run.train.fast_epochs, run.train.fast_partial) == ((32, 0.4) if mixing else (0, 0.4))
        assert run.train.interpolate_every == (5 if mixing and name != "pose-mixing-no-interpolation" else 0)


def test_nothing_at_all_is_the_course_model() -> None:
    run = config.from_dict({})
    assert run.model_name == "pose" and run.teacher_forcing is not None


# --- finding -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["cyclical", "cyclical.yaml", "reports/pose-floor", "reports/pose-floor.yaml"]
)
def test_built_in_by_name_from_any_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.find(name).resolve().is_relative_to(CONFIGS)
    assert config.load(name).model_name == "pose"


def test_a_file_goes_before_a_built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cyclical.yaml").write_text("seed: 7\n")
    assert config.load("cyclical.yaml").seed == 7
    Path("none").mkdir()
    assert config.load("none").kl.schedule == "none"  # a folder is no config


def test_unknown_name_tells_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        config.load("cylcical")
    assert "cylcical" in caught.value.message and caught.value.hint == "did you mean cyclical?"
    with pytest.raises(UserError) as caught:
        config.load("zzz")
    assert "cyclical" in caught.value.hint and "reports/pose-floor" in caught.value.hint


@pytest.mark.parametrize(
    "name",
    [
        "../README",
        "../configs/cyclical",
        "reports/../cyclical",
        "..",
        ".",
        "",
        "/",
        "a\0b",
        "x" * 5000,
        "reports",
    ],
)
def test_only_names_of_built_ins_are_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        config.find(name)


# --- files that are no configs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("train:\n  epochs: 3\n  epochs: 4\n", "line 3 epochs is given twice"),
        ("seed: 1\nseed: 1\n", "seed is given twice"),
        ("train:\n\tepochs: 3\n", "line 2"),
        ("train: [1\n", "not a valid config"),
        ("a: b: c\n", "not a valid config"),
        ("{" * 5000, "not a valid config"),
        ("a: 1\n---\nb: 2\n", "not a valid config"),
        ("a: *nowhere\n", "not a valid config"),
        ("- 1\n- 2\n", "must hold sections list"),
        ("just words\n", "must hold sections str"),
        ("42\n", "must hold sections int"),
        ("1: 2\n", "key 1 is not a word"),
        ("true: 2\n", "key True is not a word"),
        ("? [a]\n: 2\n", "is not a word"),
        ("seed: \x00\n", "not a valid config"),
        (b"\xff\xfes\x00e\x00e\x00d\x00", "UTF-8"),
        ("seed: 1 # gr\u00fc\u00df\n".encode("latin-1"), "UTF-8"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "UTF-8"),
        ("seed: !!python/object/apply:os.system ['true']\n", "not a valid config python"),
        ("seed: !!python/name:os.system\n", "not a valid config python"),
        ("seed: !include other.yaml\n", "not a valid config"),
        ("seed: !!bool maybe\n", "not a valid config"),
        ("seed: !!timestamp now\n", "not a valid config"),
        ("seed: !!int many\n", "not a valid config"),
        ("seed: !!timestamp 2024-01-01\n", "seed"),
        ("<<: {seed: 1}\n", "<<: unknown key"),
    ],
)
def test_what_is_wrong_with_a_file(content: str | bytes, words: str, tmp_path: Path) -> None:
    text = told_of_file(tmp_path, content)
    missing = [word for word in words.split() if word not in text]
    assert not missing, text
    assert "Traceback" not in text and "object at 0x" not in text


def test_a_folder_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        config.load(tmp_path)


@pytest.mark.parametrize("content", ["", "\n", "# only a comment\n", "---\n", "~\n"])
def test_an_empty_file_is_all_defaults(content: str, tmp_path: Path) -> None:
    assert config.load(write(tmp_path, content)) == config.from_dict({})


def test_a_section_left_empty_is_its_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "train:\n  # epochs: 3\nkl:\nmodel:\nteacher_forcing:\n")
    assert config.load(path) == config.from_dict({})


def test_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    assert config.load(write(tmp_path, b"\xef\xbb\xbfseed: 5\r\ntrain:\r\n  epochs: 3\r\n")).train.epochs == 3


# --- overrides ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("optim.lr=1e-4", 1e-4),
        ("optim.lr=1E-4", 1e-4),
        ("optim.lr=.5", 0.5),
        ("optim.lr=1", 1.0),
        ("train.epochs=010", 10),
        ("train.epochs=3.0", 3),
        ("train.grad_clip=null", None),
        ("train.grad_clip=~", None),
        ("train.grad_clip=", None),
        ("train.shuffle=off", False),
        ("train.shuffle=false", False),
        ("train.shuffle=on", True),
        ("runtime.compile=on", "on"),
        ("runtime.compile=off", "off"),
        ("teacher_forcing.detach=on", "on"),
        ("teacher_forcing.detach=off", "off"),
        ("teacher_forcing.detach=true", "on"),
        ("teacher_forcing.detach=false", "off"),
        ("teacher_forcing.detach=unforced", "unforced"),
        ("optim.milestones=[3, 7]", [3, 7]),
        ("optim.milestones=[]", []),
        ("optim.betas=[0.5, 0.9]", (0.5, 0.9)),
        ("train.augment.shift=[2,8]", (2, 8)),
        ("train.augment={flip: 0.5}", {"flip": 0.5, "shift": (0, 0), "zoom": 0.0}),
        ("model.logvar_clamp=5", 5.0),
        ("data.root=/some/where with space", Path("/some/where with space")),
        ("data.root=a=b", Path("a=b")),
        ("data.root=/films/set #2: new", Path("/films/set #2: new")),
        ("data.root='2024'", Path("2024")),
        ("data.root=@home", Path("@home")),
        (" train.epochs =3", 3),
        ("seed=7", 7),
    ],
)
def test_override_types(text: str, value: Any) -> None:
    found: Any = override(text)
    for part in text.partition("=")[0].strip().split("."):
        found = getattr(found, part)
    found = found.model_dump() if hasattr(found, "model_dump") else found
    assert found == value and type(found) is type(value)


def test_yaml_words_as_in_overrides(tmp_path: Path) -> None:
    text = "optim: {lr: 1e-4}\nruntime: {compile: off}\nteacher_forcing: {detach: on}\ntrain: {shuffle: no}\n"
    run = config.load(write(tmp_path, text))
    assert run.optim.lr == 1e-4 and run.runtime.compile == "off" and not run.train.shuffle
    assert run.teacher_forcing is not None and run.teacher_forcing.detach == "on"


def test_the_home_folder_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert override("data.root=~/films").data.root == tmp_path / "films"


def test_overrides_win_over_the_file_and_the_last_one_wins() -> None:
    assert config.load("cyclical", ["train.epochs=3", "train.epochs=4"]).train.epochs == 4
    run = config.load("cyclical", ["kl.cycles=9"])
    assert run.kl.cycles == 9 and run.kl.ratio == config.load("cyclical").kl.ratio


def test_the_source_is_not_changed() -> None:
    raw: dict[str, Any] = {"train": {"augment": {"flip": 0.1}}, "kl": None}
    config.from_dict(raw, ["train.augment.flip=0.2", "train.epochs=3", "kl.cycles=2"])
    assert raw == {"train": {"augment": {"flip": 0.1}}, "kl": None}


@pytest.mark.parametrize("text", ["nothing", "=3", ".epochs=3", "train.=3", "train..epochs=3", ""])
def test_not_an_override(text: str) -> None:
    assert "not an override" in told(text) and "section.key=value" in told(text)


# --- mistakes, told by key ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kl.cylces=3", "kl.cylces: unknown key; did you mean kl.cycles?"),
        ("trian.epochs=3", "trian: unknown key; did you mean train?"),
        ("sede=3", "sede: unknown key; did you mean seed?"),
        ("model.zdim=8", "model.zdim: unknown key; did you mean model.z_dim?"),
        ("train.augment.flop=1", "train.augment.flop: unknown key; did you mean train.augment.flip?"),
        (
            "teacher_forcing.ration=1",
            "teacher_forcing.ration: unknown key; did you mean teacher_forcing.ratio?",
        ),
        ("optim.leaning=1", "optim.leaning: unknown key"),
        ("kl.qqq=1", "known here: cycles, free_bits, period"),
        ("qqq=1", "known here: data, eval, kl, model"),
        (
            "kl.schedule=cycical",
            "'cycical' is not allowed 'none', 'monotonic', 'cyclical' did you mean cyclical?",
        ),
        ("model.output=sigmod", "model.output: 'sigmod' is not allowed did you mean sigmoid?"),
        ("model.name=poes", "model.name: 'poes' is not a model did you mean pose?"),
        ("model.name=[a]", "model.name: is not a model"),
        ("model=pose", "model: must be a section model: {name: pose}"),
        ("train.epochs=ten", "train.epochs: 'ten' is not allowed integer"),
        ("train.epochs=1.5", "train.epochs: 1.5 is not allowed integer"),
        ("train.epochs=0", "train.epochs: 0 is not allowed greater than or equal to 1"),
        ("train.epochs=true", "train.epochs: True is not allowed switch"),
        ("optim.lr=true", "optim.lr: True is not allowed switch"),
        ("train.epochs=[1]", "train.epochs: [1] is not allowed"),
        ("train.epochs=null", "train.epochs: None is not allowed"),
        ("train.shuffle=maybe", "train.shuffle: 'maybe' is not allowed boolean"),
        ("teacher_forcing.ratio=1.5", "teacher_forcing.ratio: 1.5 is not allowed less than or equal to 1"),
        ("teacher_forcing.detach=maybe", "teacher_forcing.detach: 'maybe' is not allowed"),
        ("optim.lr=inf", "optim.lr: finite"),
        ("optim.lr=nan", "optim.lr: 'nan'"),
        ("optim.lr=1e999", "optim.lr: inf finite"),
        ("optim.lr=-1", "optim.lr: -1 is not allowed greater than 0"),
        ("optim.milestones=[1, x]", "optim.milestones.1: 'x' is not allowed"),
        ("optim.betas=[0.9]", "optim.betas.1"),
        ("train=3", "train: 3 is not allowed section epochs"),
        ("train.augment=3", "train.augment: 3 is not allowed section flip"),
        ("data=[1]", "data: [1] is not allowed section height"),
        ("seed.x=1", "seed"),
        ("data.height=4", "data.height: 4 is not allowed greater than or equal to 8"),
        ("kl.values=[1]", "kl.schedule: values and the list kl.values go together"),
        ("train={interpolate_every: 5, ema: 0.9}", "train.interpolate_every: blends weights that train.ema"),
        ("kl.schedule=values", "kl.schedule: values and the list kl.values go together"),
        ("kl={schedule: values, values: []}", "kl.values: needs at least one number"),
        ("kl={schedule: values, values: [1], repeat_from: 1}", "kl.repeat_from: must be an index"),
        ("kl.repeat_from=0", "kl.repeat_from: must be an index into kl.values"),
        ("train.window=1", "train.window: 1 is not allowed"),
        ("data.n_past=16", "train.window (16) must be larger than data.n_past (16)"),
        ("train.epochs=[1", "train.epochs=[1 not a valid config"),
        ("train.epochs=!!python/name:os.system", "not a valid config python"),
        ("train.epochs=" + "9" * 5000, "not a valid value"),
    ],
)
def test_mistake(text: str, words: str) -> None:
    answer = told(text)
    missing = [word for word in words.split() if word not in answer]
    assert not missing, answer


def test_several_mistakes_are_told_together() -> None:
    text = told("train.epochs=0", "train.batch_size=x", "kl.cylces=1")
    assert "train.epochs" in text and "2 more" in text and "train.batch_size" in text and "kl.cylces" in text


def test_a_value_is_not_a_section(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1\n")
    with pytest.raises(UserError, match="seed is a value, not a section"):
        config.load(path, ["seed.x=1"])


def test_a_report_can_be_given_another_schedule() -> None:
    run = config.load("reports/pose-mixing", ["kl.schedule=none", "kl.values=null", "kl.repeat_from=null"])
    assert run.kl.schedule == "none" and run.kl.values is None


# --- models ------------------------------------------------------------------------------------------


def test_another_model_drops_the_first_ones_keys() -> None:
    raw = {"model": {"name": "pose", "z_dim": 8}}
    switched = config.from_dict(raw, ["model.name=reference"])
    assert switched.model == config.from_dict({"model": {"name": "reference"}}).model
    same = config.from_dict(raw, ["model.name=pose"])
    assert getattr(same.model, "z_dim") == 8  # noqa: B009


def test_keys_of_the_new_model_are_kept_wherever_they_stand() -> None:
    raw = {"model": {"name": "reference"}}
    for overrides in (["model.z_dim=8", "model.name=pose"], ["model.name=pose", "model.z_dim=8"]):
        run = config.from_dict(raw, overrides)
        assert run.model_name == "pose" and getattr(run.model, "z_dim") == 8  # noqa: B009


def test_the_old_models_keys_are_refused_by_the_new_one() -> None:
    assert "model.frame_dim: unknown key" in told("model.name=reference", "model.frame_dim=8")


def test_teacher_forcing_means_nothing_to_a_parallel_model() -> None:
    text = told("model.name=reference", "teacher_forcing.ratio=0.5")
    assert "teacher_forcing: means nothing for model reference" in text and "remove" in text
    assert "teacher_forcing=null" in told("model.name=reference", teacher_forcing={"ratio": 0.5})
    run = override("model.name=reference", "teacher_forcing=null", teacher_forcing={"ratio": 0.5})
    assert run.teacher_forcing is None


def test_a_model_of_steps_always_has_the_section() -> None:
    assert override("teacher_forcing=null") == config.from_dict({})


def test_a_resolved_parallel_config_runs_again(tmp_path: Path) -> None:
    run = override("model.name=reference")
    assert config.load(write(tmp_path, run.to_yaml())) == run


@pytest.mark.parametrize(
    "overrides",
    [
        ["optim.lr=1e-10", "optim.min_lr=1e-300", "kl.stop=1e22"],
        ["data.root=off", "runtime.threads=2", "kl.period=2.5"],
        ["data.root=./\u00fcber \u4e2d: #x", "train.ema=0.999"],
        ["kl={schedule: values, values: [0, 1e-5, 1]}", "teacher_forcing.detach=on"],
    ],
)
def test_odd_values_round_trip(overrides: list[str], tmp_path: Path) -> None:
    run = override(*overrides)
    assert config.load(write(tmp_path, run.to_yaml())) == run


def test_a_config_cannot_be_changed() -> None:
    run = config.from_dict({})
    with pytest.raises(ValueError, match="frozen"):
        run.seed = 3  # type: ignore[misc]
