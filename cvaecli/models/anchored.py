"""The reference model made autoregressive: it also sees the previous frame, true or predicted.

The first frame anchors the prediction, so that errors do not accumulate over hundreds of steps. The previous
frame shows what labels do not: where a limb was, how the clothes moved, where a pushed object lies. For
people, in training, the anchor comes from anywhere in the clip, and serves as the previous frame of the first
step. It is usually very different from the frame before the target, which teaches the model not to copy its
input blindly. Teacher forcing works as for any autoregressive model.

With ``motion`` the pixels of the previous frame can move: the model gives each pixel a displacement, and
mixes what it draws, what lay at the displaced place in the previous frame, and the anchor. After Finn,
Goodfellow & Levine 2016, "Unsupervised Learning for Physical Interaction through Video Prediction", with the
sampling of Liu et al. 2017, "Video Frame Synthesis using Deep Voxel Flow".
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from .base import ModelConfig
from .layers import places
from .reference import ReferenceCVAE, UNetConfig


class AnchoredConfig(UNetConfig):
    """Settings of the anchored model."""

    name: Literal["anchored"] = "anchored"
    motion: bool = Field(
        default=False,
        description="also move pixels of the previous frame, which keeps the texture of objects that move",
    )


class AnchoredCVAE(ReferenceCVAE):
    """The anchored model (see the module's docstring). Arguments as for ``ReferenceCVAE``."""

    Config: ClassVar[type[ModelConfig]] = AnchoredConfig
    parallel: ClassVar[bool] = False
    previous_channels: ClassVar[int] = 3
    config: AnchoredConfig

    @property
    def drawn_channels(self) -> int:
        """With ``motion`` a colour, a displacement, and the weights of the three sources."""
        return 8 if self.config.motion else super().drawn_channels

    def _compose(self, out: Tensor, reference: Tensor, x_prev: Tensor) -> Tensor:
        if not self.config.motion:
            return super()._compose(out, reference, x_prev)
        drawn, moved = torch.sigmoid(2 * out[:, :3]), move(self._pad(x_prev), out[:, 3:5])
        weights = (2 * out[:, 5:]).softmax(1).unsqueeze(2)
        return (weights * torch.stack((drawn, moved, reference), 1)).sum(1)


def move(frame: Tensor, displacement: Tensor) -> Tensor:
    """Take every pixel from a displaced place in the frame, with bilinear interpolation.

    Beyond the frame there are copies of its border.

    Args:
        frame: ``[B, C, H, W]``.
        displacement: ``[B, 2, H, W]``, in pixels to the right and downward.
    """
    H, W = frame.shape[-2:]
    right, down = displacement.float().unbind(1)
    if torch.are_deterministic_algorithms_enabled():  # which refuse the gradient of the call below on CUDA
        return _move_deterministically(frame.float(), right, down)
    x = places(W, right) + right * (2 / W)
    y = places(H, down)[:, None] + down * (2 / H)
    grid = torch.stack((x, y), -1)
    return F.grid_sample(frame.float(), grid, padding_mode="border", align_corners=False)


def _move_deterministically(frame: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """``move`` with kernels that are deterministic everywhere; displacements are ``[B, H, W]``."""
    B, C, H, W = frame.shape
    x = (torch.arange(W, device=frame.device) + right).clamp(0, W - 1)
    y = (torch.arange(H, device=frame.device)[:, None] + down).clamp(0, H - 1)
    left, top = x.detach().floor().clamp(max=W - 2), y.detach().floor().clamp(max=H - 2)
    first = (top * W + left).long().flatten(1)[:, None].expand(-1, C, -1)
    a, b, c, d = (frame.flatten(2).gather(2, first + k).view(B, C, H, W) for k in (0, 1, W, W + 1))
    x, y = (x - left)[:, None], (y - top)[:, None]
    return torch.lerp(torch.lerp(a, b, x), torch.lerp(c, d, x), y)


MODEL = AnchoredCVAE
