"""Reading run configs: what is accepted, and the error messages for everything else."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import cvae

from cvaecli.config import loading as config
from cvaecli.config.schema import RunConfig
from cvaecli.config.yaml_text import parse_yaml
from cvaecli.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = config.builtin_names()


def override(*overrides: str, **raw: Any) -> RunConfig:
    return config.from_dict(raw, overrides)


def told(*overrides: str, **raw: Any) -> str:
    """The error message and its hint, in one line."""
    with pytest.raises(UserError) as caught:
        config.from_dict(raw, overrides)
    return f"{caught.value.message} {caught.value.hint}"


def write(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "run.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def told_of_file(tmp_path: Path, content: str | bytes) -> str:
    """The error message of a file and its hint; the message names the file."""
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
    assert plain == parse_yaml((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"), name)


def test_annealing_configs_differ_in_the_kl_section_alone() -> None:
    runs = [config.load(name).to_dict() for name in ("cyclical", "monotonic", "none")]
    assert [run.pop("kl")["schedule"] for run in runs] == ["cyclical", "monotonic", "none"]
    assert runs[0] == runs[1] == runs[2]


def flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and their values."""
    keys: dict[str, Any] = {}
    for key, value in section.items():
        keys |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return keys


def written(name: str) -> dict[str, Any]:
    """What stands in a built-in config's own file."""
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    raw = parse_yaml(text, name)
    assert isinstance(raw, dict)
    return raw


EXTENDING = {name: written(name)["extends"] for name in NAMES if "extends" in written(name)}


@pytest.mark.parametrize("name", EXTENDING)
def test_an_extending_config_says_only_what_differs(name: str) -> None:
    own = flat({key: value for key, value in written(name).items() if key != "extends"})
    run, base = flat(config.load(name).to_dict()), flat(config.load(EXTENDING[name]).to_dict())
    assert {key for key in run | base if run.get(key) != base.get(key)} == set(own)


def test_variants_of_a_report_extend_its_main_config() -> None:
    """The main config of a report is the one whose name begins the others' names; it is written out."""
    reports = [name for name in NAMES if name.startswith("reports/")]
    for name in reports:
        mains = [other for other in reports if name != other and name.startswith(f"{other}-")]
        assert [EXTENDING[name]] == mains if name in EXTENDING else not mains
    assert EXTENDING


def test_the_page_on_the_reports_names_every_config() -> None:
    page = (CONFIGS.parent / "docs" / "reports.md").read_text(encoding="utf-8")
    for name in (name for name in NAMES if name.startswith("reports/")):
        main, kind = EXTENDING.get(name, name), name.removeprefix(EXTENDING.get(name, name))
        row = next(line for line in page.splitlines() if f"`{main}`" in line)
        assert not kind or f"`{kind}`" in row, name
    for name in set(re.findall(r"--config ([\w/-]+)(?=\s)", page)):
        config.load(name)


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


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("cylcical", "cyclical"),
        ("cylcical.yaml", "cyclical"),
        ("configs/cyclical", "cyclical"),
        ("pose-floor", "reports/pose-floor"),
        ("robot-tf1", "reports/robot-tf1"),
        ("report/pose-mixng", "reports/pose-mixing"),
    ],
)
def test_unknown_name_suggests_the_nearest(
    name: str, nearest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        config.load(name)
    assert name in caught.value.message and caught.value.hint == f"did you mean {nearest}?"


def test_a_name_like_no_other_lists_all() -> None:
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
        ("a: *nowhere\n", "line 1 aliases not allowed"),
        ("kl: &k\n  cycles: 3\ntrain: *k\n", "line 3 aliases not allowed"),
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


def test_an_anchor_bomb_is_refused_quickly(tmp_path: Path) -> None:
    """Ten lines that stand for 10^9 words: even to print them would take minutes."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 9)]
    began = time.process_time()
    assert "aliases" in told_of_file(tmp_path, "\n".join([*lines, "seed: *a8"]))
    assert time.process_time() - began < 1


@pytest.mark.parametrize("content", ["# " + "x" * 10_000_000, "seed: 1\n" * 2_000_000, "seed: [" * 10**6])
def test_a_huge_file_is_refused_quickly(content: str, tmp_path: Path) -> None:
    began = time.process_time()
    text = told_of_file(tmp_path, content)
    assert "longer than" in text and len(text) < 300
    assert time.process_time() - began < 1


def test_a_long_value_is_cut_in_the_message(tmp_path: Path) -> None:
    text = told_of_file(tmp_path, f"train:\n  epochs: {'x' * 10_000}\n")
    assert "train.epochs" in text and len(text) < 400


def test_a_folder_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        config.load(tmp_path)


@pytest.mark.parametrize("content", ["", "\n", "# only a comment\n", "---\n", "~\n"])
def test_an_empty_file_is_all_defaults(content: str, tmp_path: Path) -> None:
    assert config.load(write(tmp_path, content)) == config.from_dict({})


def test_a_section_left_empty_is_its_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "train:\n  # epochs: 3\nkl:\nmodel:\nteacher_forcing:\n")
    assert config.load(path) == config.from_dict({})


@pytest.mark.parametrize("base", ["reference", "quickstart"])
def test_a_section_within_a_section_left_empty_changes_nothing(base: str, tmp_path: Path) -> None:
    run = extending(tmp_path, run=f"extends: {base}\ntrain:\n  augment:\n")
    assert run == config.load(base)


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


@pytest.mark.parametrize("text", ["data.root=", "data.root= ", "data.root=''", 'runtime.device=""'])
def test_an_empty_override_is_refused(text: str) -> None:
    """``data.root=$UNSET`` must not train on the built-in data."""
    key = text.partition("=")[0]
    message = told(text)
    assert message.startswith(text) and "no value" in message
    assert "shell variable unset" in message and f"{key}=null unsets the key" in message


def test_an_empty_override_ends_with_status_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cvae("train", "--config", "quickstart", "data.root=").wrong("data.root=: no value")
    assert not list(tmp_path.iterdir())


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
        ("train.lr=0.1", "train.lr: unknown key; did you mean optim.lr?"),
        ("data.sampels=3", "data.sampels: unknown key; did you mean eval.samples?"),
        ("lr=0.1", "lr: unknown key; did you mean optim.lr?"),
        ("optim.epochs=3", "optim.epochs: unknown key; did you mean train.epochs?"),
        ("train.flip=0.5", "did you mean train.augment.flip?"),
        ("train.z_dim=8", "did you mean model.z_dim?"),
        ("model.lr=1", "model.lr: unknown key; did you mean optim.lr?"),
        ("data.schedule=none", "did you mean kl.schedule or optim.schedule?"),
        ("optim.weight=1", "did you mean optim.weight_decay or kl.weight?"),
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
        (
            "train={interpolate_every: 5, ema: 0.9}",
            "train.interpolate_every: blends the weights, but train.ema",
        ),
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


@pytest.mark.parametrize(
    ("overrides", "blamed"),
    [
        (["train.sampleing=3", "seed=1"], "override train.sampleing=3: train.sampleing: unknown key"),
        (["seed=1", "train.epochs=ten"], "override train.epochs=ten: train.epochs: 'ten'"),
        (["train.epochs=ten", "train.epochs=0"], "override train.epochs=0: train.epochs: 0"),
        (["kl={schedule: wrong}", "seed=1"], "override kl={schedule: wrong}: kl.schedule"),
        (["trian.epochs=3", "seed=1"], "override trian.epochs=3: trian: unknown key"),
        (["seed=1", "kl.schedule=values"], "override kl.schedule=values: kl.schedule: values and"),
        (["data.n_past=16"], "override data.n_past=16: train.window (16) must be larger"),
        (["data.n_past=16", "seed=1"], "run.yaml with these overrides: train.window (16) must be"),
    ],
)
def test_a_mistake_in_an_override_names_the_override(
    overrides: list[str], blamed: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        config.load(write(tmp_path, "train: {window: 16}\n"), overrides)
    assert caught.value.message.removeprefix(f"{tmp_path}/").startswith(blamed)


def test_a_mistake_in_the_file_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "train:\n  epoch: 3\n")
    with pytest.raises(UserError) as caught:
        config.load(path, ["train.epochs=3"])
    assert caught.value.message.startswith(f"{path}: train.epoch: unknown key; did you mean train.epochs?")


def test_several_mistakes_are_reported_together() -> None:
    text = told("train.epochs=0", "train.batch_size=x", "kl.cylces=1")
    assert "train.epochs" in text and "2 more" in text and "train.batch_size" in text and "kl.cylces" in text


def test_a_value_is_not_a_section(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1\n")
    with pytest.raises(UserError, match="seed is a value, not a section"):
        config.load(path, ["seed.x=1"])


def test_a_report_can_be_given_another_schedule() -> None:
    run = config.load("reports/pose-mixing", ["kl.schedule=none", "kl.values=null", "kl.repeat_from=null"])
    assert run.kl.schedule == "none" and run.kl.values is None


# --- extends -----------------------------------------------------------------------------------------


def extending(tmp_path: Path, **files: str) -> RunConfig:
    """The config ``run.yaml`` of a folder with these files."""
    for stem, text in files.items():
        (tmp_path / f"{stem}.yaml").write_text(text, encoding="utf-8")
    return config.load(tmp_path / "run.yaml")


def told_of_extending(tmp_path: Path, **files: str) -> str:
    with pytest.raises(UserError) as caught:
        extending(tmp_path, **files)
    text = f"{caught.value.message} {caught.value.hint}"
    assert str(tmp_path) in text and "\n" not in text
    return text


def test_extends_a_built_in_key_by_key(tmp_path: Path) -> None:
    run = extending(tmp_path, run="extends: reference\ntrain:\n  epochs: 3\n  augment: {flip: 0.1}\n")
    overridden = config.load("reference", ["train.epochs=3", "train.augment.flip=0.1"])
    assert run == overridden and run.train.augment.shift == (2, 8)


def test_extends_a_file_in_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the folder is the file's own, not the current one
    folder = tmp_path / "mine"
    folder.mkdir()
    (tmp_path / "base.yaml").write_text("seed: 1\n")
    assert extending(folder, run="extends: base.yaml\n", base="seed: 7\n").seed == 7


def test_a_chain_is_merged_from_its_end(tmp_path: Path) -> None:
    run = extending(
        tmp_path,
        run="extends: middle.yaml\ntrain: {epochs: 3}\n",
        middle="extends: cyclical\ntrain: {epochs: 2, window: 9}\nkl: {cycles: 2}\n",
    )
    assert (run.train.epochs, run.train.window, run.kl.cycles) == (3, 9, 2)
    assert run.train.save_every == config.load("cyclical").train.save_every


def test_a_file_may_bear_the_name_of_the_built_in_it_extends(tmp_path: Path) -> None:
    (tmp_path / "cyclical.yaml").write_text("extends: cyclical\nseed: 7\n")
    run = config.load(tmp_path / "cyclical.yaml")
    assert run == config.load("cyclical", ["seed=7"])


def test_the_resolved_config_is_complete(tmp_path: Path) -> None:
    run = extending(tmp_path, run="extends: pose\nseed: 3\n")
    assert "extends" not in run.to_dict() and "extends" not in run.to_yaml()
    (tmp_path / "again.yaml").write_text(run.to_yaml())
    assert config.load(tmp_path / "again.yaml") == run


def test_another_model_drops_the_keys_of_the_base(tmp_path: Path) -> None:
    run = extending(tmp_path, run="extends: cyclical\nmodel: {name: anchored}\n")
    assert run.model == config.from_dict({"model": {"name": "anchored"}}).model
    same = extending(tmp_path, run="extends: cyclical\nmodel: {z_dim: 4}\n")
    assert same.model == config.load("cyclical", ["model.z_dim=4"]).model


def test_null_removes_teacher_forcing_and_unsets_a_key(tmp_path: Path) -> None:
    run = extending(
        tmp_path,
        run="extends: cyclical\nmodel: {name: reference}\nteacher_forcing: null\ntrain: {grad_clip: null}\n",
    )
    assert run.teacher_forcing is None and run.train.grad_clip is None


def test_a_section_left_empty_changes_nothing(tmp_path: Path) -> None:
    run = extending(tmp_path, run="extends: reference\ntrain:\n  # epochs: 3\nkl:\n")
    assert run == config.load("reference")


def test_overrides_apply_after_the_merge(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("extends: cyclical\ntrain: {epochs: 3}\n")
    run = config.load(tmp_path / "run.yaml", ["train.epochs=4"])
    assert run == config.load("cyclical", ["train.epochs=4"])


@pytest.mark.parametrize(
    "files",
    [
        {"run": "extends: run.yaml\n"},
        {"run": "extends: other.yaml\n", "other": "extends: run.yaml\n"},
        {"run": "extends: a.yaml\n", "a": "extends: b.yaml\n", "b": "extends: a.yaml\n"},
    ],
)
def test_a_circle_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    text = told_of_extending(tmp_path, **files)
    assert "circular: run.yaml -> " in text


def test_a_file_outside_the_folder_is_out_of_reach(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (tmp_path / "secret.yaml").write_text("seed: 1\n")
    (folder / "link.yaml").symlink_to(tmp_path / "secret.yaml")
    for name in ("../secret.yaml", str(tmp_path / "secret.yaml"), "link.yaml", "sub/../../secret.yaml"):
        assert "not in the same folder" in told_of_extending(folder, run=f"extends: {name}\n")
    for name in ("../secret", "../../configs/cyclical", "reports/../cyclical"):
        assert "not a built-in config" in told_of_extending(folder, run=f"extends: {name}\n")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("extends: cylcical", "'cylcical': not a built-in config did you mean cyclical?"),
        ("extends: cyclical.yaml", "no such file in the same folder; extends: cyclical"),
        ("extends: other", "'other': not a built-in config; extends: other.yaml"),
        ("extends:", "None: not a name"),
        ("extends: [cyclical]", "['cyclical']: not a name"),
        ("extends: ''", "not a name"),
        ('extends: "a\\0b"', "not a name"),
        (f"extends: {'x' * 5000}", "not a name"),
        (f"extends: {'x' * 5000}.yaml", "not a name"),
        ("extends: wrong.yaml", "run.yaml (extends wrong.yaml): train.epochs: 'x' is not allowed"),
        ("extends: bad.yaml", "bad.yaml: must hold sections"),
    ],
)
def test_what_cannot_be_extended(line: str, words: str, tmp_path: Path) -> None:
    wrong = "train: {epochs: x}\n"
    text = told_of_extending(tmp_path, run=f"{line}\n", other="seed: 1\n", bad="- 1\n", wrong=wrong)
    missing = [word for word in words.replace(";", "").split() if word not in text]
    assert not missing, text


def test_an_override_cannot_extend() -> None:
    assert "extends: unknown key" in told("extends=cyclical")


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
    assert "teacher_forcing: no meaning for model reference" in text and "remove" in text
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
