"""The optimiser of a run, and the clipping of its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..config.schema import RunConfig
from ..models.base import VideoCVAE
from .muon import Muon, is_matrix


def make_optimizer(model: VideoCVAE, config: RunConfig, graphs: bool) -> torch.optim.Optimizer:
    """The optimiser that ``optim`` names, with fused kernels.

    Args:
        model: on its device.
        graphs: whether its step is recorded as a CUDA graph, which reads the learning rate from the device.
    """
    optim, parameters = config.optim, list(model.parameters())
    lr: Any = torch.tensor(optim.lr, device=parameters[0].device) if graphs else optim.lr
    if optim.name == "sgd":
        sgd = torch.optim.SGD(
            parameters, lr, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=True
        )
        for p in parameters if optim.momentum else ():
            # PyTorch allocates these at the first step and leaves them unwritten if that step is skipped.
            sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return sgd
    settings: dict[str, Any] = {"betas": optim.betas, "weight_decay": optim.weight_decay}
    settings |= {"fused": True, "capturable": graphs}
    if optim.name == "muon":
        sorts: dict[bool, list[torch.Tensor]] = {True: [], False: []}
        for name, p in model.named_parameters():
            sorts[is_matrix(p) and not name.startswith(model.ends)].append(p)
        return Muon(sorts[True], sorts[False], lr, momentum=optim.momentum, **settings)
    kind = torch.optim.Adam if optim.name == "adam" else torch.optim.AdamW
    return kind(parameters, lr, **settings)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def clip_gradients(parameters: Sequence[torch.Tensor], limit: float | None) -> torch.Tensor:
    """Scale the gradients so that their norm over all parameters is at most ``limit``.

    Returns:
        The norm before clipping, a scalar on the device.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    # On a CPU the norm is known here, and smaller gradients need no scaling; on other devices looking at it
    # would wait for the device.
    if limit is not None and (norm.device.type != "cpu" or norm > limit):
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm.detach()


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load moments, step counts and the learning rate; keep this device's own settings."""
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    set_lr(optimizer, float(state["param_groups"][0]["lr"]))
