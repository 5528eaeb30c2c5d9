"""``cvae demo``: the page's server, and labels drawn as the training labels are."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import QUICK, write_set, yaml_config

import cvaecli
from cvaecli.api.demo import Stage
from cvaecli.api.demo_server import DemoServer
from cvaecli.config import loading as config
from cvaecli.errors import UserError
from cvaecli.synthetic import dancer
from cvaecli.synthetic.puppet import Puppet


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    path = yaml_config(folder, write_set(folder / "data"), model=QUICK, train={"max_steps": 1})
    return cvaecli.train(config.load(path), name="x", runs=folder / "runs").path


@pytest.fixture
def stage(run: Path) -> Stage:
    return Stage(run)


# --- the puppet ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips() -> dict[str, Any]:
    splits = dancer.generate(32, 64, frames=30, train=2, val=1, test=1)
    return {clip.name: clip for clips in splits.values() for clip in clips}


@pytest.mark.parametrize("name", ["train/1", "val/0", "test/0"])
def test_its_labels_are_the_training_labels(name: str, clips: dict[str, Any]) -> None:
    puppet = Puppet(name, 30, 32, 64)
    for t in (0, 13, 29):
        assert np.array_equal(puppet.label(t), clips[name].condition[t])


def test_a_joint_that_is_put_where_it_is_changes_nothing(clips: dict[str, Any]) -> None:
    puppet = Puppet("val/0", 30, 32, 64)
    difference = puppet.label(7, puppet.joints(7)).astype(int) - clips["val/0"].condition[7]
    assert np.abs(difference).max() <= 2, "rounding of an outline's corners"


def test_a_moved_joint_takes_its_sticks_along() -> None:
    puppet = Puppet("val/0", 30, 32, 64)
    before, after = puppet.label(0), puppet.label(0, {"right_wrist": (5.0, 28.0)})
    ink = 255 - after[:, 26:30, 3:8].astype(int)
    assert ink.max() > 100 and not (255 - before[:, 26:30, 3:8]).any()


# --- the model ----------------------------------------------------------------------------------------


def test_it_predicts_what_predict_predicts(run: Path, tmp_path: Path, stage: Stage) -> None:
    """With z at the prior's mean, frame by frame."""
    (video,) = cvaecli.predict(run, ["eval.prior=mean"], split="val", out=tmp_path / "x.npz")
    stage._noise = [noise * 0 for noise in stage._noise]
    shown = [stage.step(t)["frame"] for t in range(1, 7)]
    with np.load(video) as file:
        assert np.array_equal(np.stack(shown), file["frames"][1:])


def test_z_changes_only_when_it_is_drawn(stage: Stage) -> None:
    noise = [value.clone() for value in stage._noise]
    stage.step(1)
    assert all(np.array_equal(a, b) for a, b in zip(noise, stage._noise, strict=True))
    stage.draw_again(1)
    assert not np.array_equal(noise[0], stage._noise[0])


@pytest.mark.parametrize(
    "wrong", [{"t": 99}, {"t": -1}, {"t": 1, "joints": {"tail": (0, 0)}}, {"t": 1, "vector": [0.0]}]
)
def test_it_refuses_what_is_not_there(wrong: dict[str, Any], stage: Stage) -> None:
    with pytest.raises(UserError):
        stage.step(**wrong)


# --- the server ---------------------------------------------------------------------------------------


@pytest.fixture
def server(stage: Stage) -> Iterator[DemoServer]:
    with DemoServer(stage) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(server: DemoServer, path: str, given: object = None, **headers: str) -> tuple[int, bytes, str]:
    connection = HTTPConnection(*server.server_address[:2], timeout=20)
    body = None if given is None else given if isinstance(given, bytes) else json.dumps(given)
    connection.request("GET" if given is None else "POST", path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.headers["Content-Type"]


def test_the_page_and_its_requests(server: DemoServer, stage: Stage) -> None:
    status, page, kind = ask(server, "/")
    assert status == 200 and kind.startswith("text/html") and b"connect-src 'self'" in page
    assert b"http://" not in page.replace(b"http://www.w3.org/2000/svg", b""), "no request elsewhere"
    shown = json.loads(ask(server, "/restart", {"clip": 0, "first": 2, "seed": 0})[1])
    given = np.moveaxis(stage._clips[0].frames[2], 0, -1)
    assert base64.b64decode(shown["frame"]) == given.tobytes() and shown["t"] == 2
    assert ask(server, "/record", {})[0] == ask(server, "/step", {"t": 3})[0] == 200
    status, gif, kind = ask(server, "/gif", {})
    assert status == 200 and kind == "image/gif" and gif.startswith(b"GIF89a")
    assert ask(server, "/gif", {})[0] == 400


def test_it_listens_to_this_machine_alone(server: DemoServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, "/", Host="evil.example")[0] == 403
    assert ask(server, "/step", {"t": 1}, Origin="http://evil.example")[0] == 403
    assert ask(server, "/step", {"t": 1}, Origin=server.url.rstrip("/"))[0] == 200


@pytest.mark.parametrize(
    "given", [b"no JSON", {}, [], {"t": "x"}, {"t": 1, "joints": {"neck": [1]}}, {"t": 99}]
)
def test_a_wrong_request_is_answered(given: object, server: DemoServer) -> None:
    assert ask(server, "/step", given)[0] == 400
    assert ask(server, "/step", {"t": 1})[0] == 200, "and the server goes on"


def test_a_taken_port_is_named(server: DemoServer, stage: Stage) -> None:
    with pytest.raises(UserError, match="--port"):
        DemoServer(stage, server.server_address[1])
