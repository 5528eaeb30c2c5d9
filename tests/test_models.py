"""The list of models, and what all models' settings refuse."""

from __future__ import annotations

import pytest

from cvaecli import models
from cvaecli.config import loading as config
from cvaecli.errors import UserError
from cvaecli.models.base import VideoCVAE

SHAPES = {"label images": (3, 16, 16), "vectors": (7,)}


def test_every_listed_name_is_a_model() -> None:
    assert models.names() == ["anchored", "pose", "reference", "svg"]
    for name in models.names():
        model = models.load(name)
        assert issubclass(model, VideoCVAE) and model.Config().name == name


@pytest.mark.parametrize("name", ["base", "latents", "layers", "pose_checkpoint", "svg.model", "__init__"])
def test_other_modules_are_not_models(name: str) -> None:
    with pytest.raises(UserError, match=r"model\.name: .* is not a model") as caught:
        config.from_dict({}, [f"model.name={name}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("pose", "logvar_clamp", "true"),
        ("pose", "z_dim", "true"),
        ("svg", "logvar_clamp", "true"),
        ("svg", "levels", "[true]"),
        ("reference", "patch", "true"),
        ("anchored", "widths", "[16, true]"),
    ],
)
def test_a_switch_is_not_taken_for_a_number(name: str, key: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"model\.{key}: .*switch"):
        config.from_dict({}, [f"model.name={name}", f"model.{key}={value}"])


def test_switches_stay_switches() -> None:
    settings = config.from_dict({}, ["model.name=svg", "model.conditional_conv=true"])
    assert settings.model.model_dump()["conditional_conv"] is True


@pytest.mark.parametrize("name", ["pose", "svg"])
def test_conditions_of_the_wrong_kind_name_the_model_that_refuses_them(name: str) -> None:
    model = models.load(name)
    shape = SHAPES["label images" if name == "svg" else "vectors"]
    with pytest.raises(UserError, match=f"model.name: {name} needs ") as caught:
        model(model.Config(), shape)
    assert "choose model.name=" in str(caught.value.hint)
