"""The reference model made autoregressive: it also sees the previous frame, true or its own.

The first frame anchors the prediction, so that errors do not pile up over hundreds of steps; the
previous frame adds what no label tells: where a limb was, what the cloth did. In training the anchor
comes from anywhere in the clip, and the first step is fed the anchor as its previous frame: a frame far
off, which teaches the model not to trust what it is fed blindly. Teacher forcing applies as to any
autoregressive model.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from .base import ModelConfig
from .reference import ReferenceCVAE, UNetConfig


class AnchoredConfig(UNetConfig):
    """Settings of the anchored model."""

    name: Literal["anchored"] = "anchored"


class AnchoredCVAE(ReferenceCVAE):
    """See the module's docstring; arguments as ``ReferenceCVAE``."""

    Config: ClassVar[type[ModelConfig]] = AnchoredConfig
    parallel: ClassVar[bool] = False
    previous_channels: ClassVar[int] = 3


MODEL = AnchoredCVAE
