"""The reference model made autoregressive: it also sees the previous frame, true or predicted.

The first frame anchors the prediction, so that errors do not accumulate over hundreds of steps. The previous
frame shows what labels do not: where a limb was, how the clothes moved. In training the anchor comes from
anywhere in the clip, and serves as the previous frame of the first step. It is usually very different from
the frame before the target, which teaches the model not to copy its input blindly. Teacher forcing works as
for any autoregressive model.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from .base import ModelConfig
from .reference import ReferenceCVAE, UNetConfig


class AnchoredConfig(UNetConfig):
    """Settings of the anchored model."""

    name: Literal["anchored"] = "anchored"


class AnchoredCVAE(ReferenceCVAE):
    """The anchored model (see the module's docstring). Arguments as for ``ReferenceCVAE``."""

    Config: ClassVar[type[ModelConfig]] = AnchoredConfig
    parallel: ClassVar[bool] = False
    previous_channels: ClassVar[int] = 3


MODEL = AnchoredCVAE
