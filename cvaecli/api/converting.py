"""Make a run of another program's checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from .. import checkpoint as checkpoints
from .. import models
from ..config.loading import from_dict, sections
from ..config.schema import RunConfig
from ..data.kinds import KINDS
from ..errors import UserError
from ..models.base import ForeignSettings
from ..reporter import Reporter, Silent
from ..run import Run, describe_environment
from .loading import RUNS, build_model, load_initial_weights


def convert(
    file: str | Path,
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    runs: Path = RUNS,
    reporter: Reporter | None = None,
) -> Run:
    """Make a run of a checkpoint of the course's template (model pose), or of the SVG code (model svg).

    Nothing in the file is run. The model's settings are those of the file, the others are the config's.

    Args:
        file: the checkpoint.
        config: see ``config.loading.load``; its ``model.name`` says what the file is.
        overrides: on top of both.
        name: the run's name; ``converted-001``, ``converted-002``... when unset.
        runs: folder for run folders.

    Returns:
        The run, with ``checkpoints/last.pt``, which holds weights only.

    Raises:
        UserError: the config or the file cannot be used, or they do not fit; no run folder is left behind.
    """
    file, reporter = Path(file), reporter or Silent()
    raw, where = sections(config)
    model_name = from_dict(raw, overrides, where).model_name
    found = models.load(model_name).foreign_settings(file)
    if found is None:
        raise UserError(
            f"model.name: no other program's files are known for {model_name}",
            "choose a config with model.name=pose or model.name=svg",
        )
    data = {**(raw.get("data") or {}), **found.data}
    settings = from_dict({**raw, "model": found.model, "data": data}, overrides, where)
    shape = _condition_shape(found, settings)
    model = build_model(settings, shape)
    load_initial_weights(model, file, reporter)
    run = Run.create(runs, "converted", name)
    run.write_config(settings)
    checkpoints.save(
        run,
        "last",
        {
            "format": checkpoints.FORMAT,
            "config": settings.to_yaml(),
            "model": model.state_dict(),
            "condition_shape": shape,
            "epoch": found.epochs,
            "step": 0,
        },
    )
    run.update_info(
        **describe_environment(),
        status="finished",
        seed=settings.seed,
        parameters=sum(p.numel() for p in model.parameters()),
        converted_from={"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()},
    )
    return run


def _condition_shape(found: ForeignSettings, config: RunConfig) -> list[int]:
    """The shape of one condition: that of the file's model, else the usual one of the data's kind."""
    columns = KINDS[config.data.kind].columns
    if columns:
        return [found.condition or sum(map(len, columns.values()))]
    return [found.condition, config.data.height, config.data.width]
