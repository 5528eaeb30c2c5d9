"""What a training needs before its first step: the data, the model and the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..config.schema import RunConfig
from ..data.clip import VideoData, first_frames
from ..data.robot import condition_stats
from ..engine.device import Device, prepare
from ..engine.distributed import ALONE, World
from ..engine.fit import Trainer
from ..errors import UserError
from ..reporter import Reporter
from .loading import build_model, load_data, load_initial_weights, warn_of_unusable_gpu
from .tensorboard import require as require_tensorboard


def prepared(
    config: RunConfig, reporter: Reporter, world: World, saved: Mapping[str, Any] | None = None
) -> tuple[VideoData, Trainer]:
    """The data and the trainer, in the state of the checkpoint ``saved`` if there is one.

    With several processes, an error in one ends all.

    Raises:
        UserError: the checkpoint was trained on other data.
    """
    with world.agreeing():
        require_tensorboard(config)
        device = prepare(config.runtime)
    warn_of_unusable_gpu(config, reporter)
    data = load_data(config, ("train", "val"), reporter, world)
    with world.agreeing():
        if saved is not None and data.fingerprint != saved["data_fingerprint"]:
            raise UserError(
                f"{data.source}: not the data this run was trained on (fingerprint {data.fingerprint}, "
                f"was {saved['data_fingerprint']})",
                "restore them, or start a new run",
            )
        trainer = build_trainer(config, data, device, reporter, saved is None, world)
        if saved is not None:
            try:
                trainer.load_state_dict(saved["trainer"], saved["model"])
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise UserError(
                    f"the checkpoint does not fit this model or this version: {error!r:.200}",
                    "start a new run from its weights: train.init=FILE",
                ) from None
    wanted, effective = config.train.prior_share, trainer.prior_share
    if abs(wanted - effective) > 1e-9:
        reporter.warn(
            f"train.prior_share: {wanted:g} of a batch of {config.train.batch_size} is "
            f"{effective * config.train.batch_size:.0f} rows, a share of {effective:g}"
        )
    return data, trainer


def build_trainer(
    config: RunConfig,
    data: VideoData,
    device: Device,
    reporter: Reporter,
    new: bool = True,
    world: World = ALONE,
) -> Trainer:
    """A new model, and the trainer for it.

    Args:
        new: whether the training is new. Then the model gets the statistics of its training data; with
            ``train.init`` it gets the weights and the statistics of that file instead, because the weights
            were trained with those. A resumed training has both in its checkpoint.
    """
    train_clips = data.splits["train"]
    model = build_model(config, train_clips[0].condition.shape[1:])
    if new and train_clips[0].condition.ndim == 2:
        used = first_frames([clip.n_frames for clip in train_clips], config.data.partial)
        mean, std = condition_stats(train_clips, used)
        model.set_condition_stats(torch.from_numpy(mean), torch.from_numpy(std))
    if new and config.train.init is not None:
        load_initial_weights(model, config.train.init, reporter)
    return Trainer(model, config, device, train_clips, data.splits["val"], world)
