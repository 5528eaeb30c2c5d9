"""Initial weights of an SVG model: the original's, or scaled ones so that training does not ignore z."""

from __future__ import annotations

import torch
from torch import nn

from .backbones import Layer
from .recurrent import FramePredictor, GaussianLSTM

START_LOGVAR = -4.0
"""Log of the posterior's variance after ``initialise_scaled``."""
MEAN_FACTOR = 20.0
"""Factor on the posterior's means there: an LSTM's outputs are small at first, and z should be of order 1."""


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """The original's initialisation: normal weights with standard deviation 0.02 around 1 for norms, else 0.

    Biases are 0, LSTM cells have PyTorch's defaults. The condition's scales and shifts start at 0, its slopes
    are random.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.BatchNorm2d | nn.GroupNorm):
            mean = 1.0 if isinstance(module, nn.BatchNorm2d | nn.GroupNorm) else 0.0
            module.weight.normal_(mean, 0.02)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, Layer) and module.modulate is not None:
            nn.init.zeros_(module.modulate.weight)
            if module.slope is not None:
                module.slope.weight.normal_(0, module.slope.in_features**-0.5)


@torch.no_grad()
def initialise_scaled(predictor: FramePredictor, posterior: GaussianLSTM, prior: GaussianLSTM | None) -> None:
    """Start with a z that carries information.

    With the original's weights the posterior's means differ by 0.002 from frame to frame, under noise of
    standard deviation 1, and a short training learns to ignore z.
    """
    for lstm in (predictor, posterior, prior):
        for module in () if lstm is None else lstm.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0, module.in_features**-0.5)
    posterior.mu_net.weight.mul_(MEAN_FACTOR)
    posterior.logvar_net.bias.fill_(START_LOGVAR)
