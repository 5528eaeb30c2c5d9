"""The optimiser of a run."""

from __future__ import annotations

from typing import Any

import torch

from ..config.schema import RunConfig
from ..models.base import VideoCVAE


def make_optimizer(model: VideoCVAE, config: RunConfig, graphs: bool) -> torch.optim.Optimizer:
    """What ``optim`` says, with fused kernels.

    Args:
        model: on its device.
        graphs: its step goes into CUDA graphs, which read the learning rate from the device.
    """
    optim, parameters = config.optim, list(model.parameters())
    lr: Any = torch.tensor(optim.lr, device=parameters[0].device) if graphs else optim.lr
    if optim.name == "sgd":
        return torch.optim.SGD(
            parameters, lr, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=True
        )
    kind = torch.optim.Adam if optim.name == "adam" else torch.optim.AdamW
    return kind(
        parameters, lr, betas=optim.betas, weight_decay=optim.weight_decay, fused=True, capturable=graphs
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of the next step."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over moments, counts and the learning rate; other settings are this device's own."""
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    set_lr(optimizer, float(state["param_groups"][0]["lr"]))
