"""The course's pose model: an autoregressive CVAE at full frame size, conditioned on label images.

- no down-sampling: all feature maps and the latent have the frame's height and width
- the posterior sees a true frame and the label; the prior is N(0, I) at every pixel
- no state: a step needs only the previous frame, the label and z
- channels, rounded down as in the course's code: frame encoder frame_dim / 8, / 4, / 2; label encoder
  label_dim / 2; posterior z_dim / 4, / 2; fusion n / 4, n / 2 with n = frame_dim + label_dim + z_dim, then
  fusion_dim / 2; generator fusion_dim / 2, / 4, / 8

With the default sizes, the 209 state-dict entries have the names, shapes and order of a course checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..errors import UserError
from .base import (
    Features,
    ForeignSettings,
    ForeignWeights,
    Gaussian,
    ModelConfig,
    State,
    Step,
    VideoCVAE,
    fold_time,
    follows,
)
from .latents import clamp_logvar, standard_normal, to_gaussian
from .layers import (
    BatchNorm,
    DepthConvBlock,
    ResidualBlock,
    at_least_float32,
    batch_norm_per_step,
    join_time,
    split_time,
)
from .pose_checkpoint import course_settings, load_course_checkpoint

MIN_SIZE = 4  # the label encoder pads 3 pixels by reflection, which needs sides of at least 4


class PoseConfig(ModelConfig):
    """Settings of the pose model; the defaults are the course's."""

    name: Literal["pose"] = "pose"
    frame_dim: int = Field(default=128, ge=8, description="channels of the frame features (course: F_dim)")
    label_dim: int = Field(default=32, ge=2, description="channels of the label features (course: L_dim)")
    z_dim: int = Field(default=12, ge=4, description="latent channels at every pixel (course: N_dim)")
    fusion_dim: int = Field(
        default=192, ge=8, description="channels of the generator's input (course: D_out_dim)"
    )
    output: Literal["linear", "sigmoid"] = Field(
        default="linear",
        description="after the generator: nothing, or a sigmoid that keeps frames in (0, 1)",
    )
    posterior: Literal["target", "fed"] = Field(
        default="target",
        description="frame that the posterior sees: the true frame to predict, or the input frame",
    )
    batch_norm: Literal["per_step", "pooled"] = Field(
        default="per_step",
        description="training statistics of the label encoder's batch norm: for each time step separately"
        " (as in the course's loop), or over all steps",
    )
    logvar_clamp: float | None = Field(
        default=None,
        gt=0,
        description="a number c keeps the posterior's logvar in [-c, c]; null: unbounded, as in the course",
    )


class PoseCVAE(VideoCVAE):
    """The course architecture (see the module's docstring).

    Args:
        config: sizes and switches.
        condition_shape: (C, H, W) of the label images, which have the frames' size.

    Raises:
        UserError: the conditions are vectors, or the frames are smaller than 4x4.
    """

    Config: ClassVar[type[ModelConfig]] = PoseConfig

    def __init__(self, config: PoseConfig, condition_shape: tuple[int, ...]) -> None:
        super().__init__()
        if len(condition_shape) != 3:
            raise UserError(
                f"model.name: pose needs label images as conditions, not shape {condition_shape}",
                "for vector conditions choose model.name=svg",
            )
        channels, height, width = condition_shape
        if min(height, width) < MIN_SIZE:
            raise UserError(
                f"model.name: pose needs frames of {MIN_SIZE}x{MIN_SIZE} or more, these are {height}x{width}",
                "set data.height and data.width",
            )
        self.config = config
        frame, label, z, fusion = config.frame_dim, config.label_dim, config.z_dim, config.fusion_dim
        # Names as in a course checkpoint.
        self.frame_transformation = frame_encoder(3, frame)
        self.label_transformation = LabelEncoder(channels, label, config.batch_norm == "per_step")
        self.Gaussian_Predictor = gaussian_head(frame + label, z)
        self.Decoder_Fusion = fusion_net(frame + label + z, fusion)
        self.Generator = generator(fusion, 3)

    def noise_shapes(self, size: tuple[int, int]) -> list[tuple[int, ...]]:
        """One level: ``(z_dim, H, W)``."""
        return [(self.config.z_dim, *size)]

    def foreign_weights(self, path: Path) -> ForeignWeights:
        """The weights of a course checkpoint (``.ckpt``)."""
        found = load_course_checkpoint(path, self.state_dict(), self.config.model_dump())
        return ForeignWeights(found.state_dict, found.notes)

    @classmethod
    def foreign_settings(cls, path: Path) -> ForeignSettings:
        """The sizes of a course checkpoint; its output is linear, and its logvar unbounded."""
        return course_settings(path)

    def encode(self, condition: Tensor, targets: Tensor | None = None) -> Features:
        """Label features and, if the posterior sees the targets, its ``mu`` and ``logvar``.

        In training mode this updates the batch norm's running statistics: call it once for each step.
        """
        label = self.label_transformation(condition)  # (B, K, label_dim, H, W)
        features = {"label": label}
        if targets is not None and self.config.posterior == "target":
            frame = self.frame_transformation(targets.flatten(0, 1))
            q = self._posterior(frame, label.flatten(0, 1))
            parts = {"mu": q.mu, "logvar": q.logvar, "frame": frame}
            features |= {name: split_time(part, label.shape[:2]) for name, part in parts.items()}
            features["x"] = targets
        return features

    def start(self, past: Tensor, condition: Tensor) -> State:
        """No state: an empty tuple."""
        return ()

    def step(
        self, state: State, x_prev: Tensor, features: Features, noise: Sequence[Tensor], posterior: bool
    ) -> tuple[Step, State]:
        """Predict one frame; the prior is N(0, I)."""
        return self._draw(self.frame_transformation(x_prev), features, noise[0], posterior), state

    def unroll(
        self, state: State, x_prev: Tensor, features: Features, noise: Sequence[Tensor], posterior: bool
    ) -> tuple[Step, State]:
        """All K steps as one batch of B * K, which is possible because there is no state."""
        if follows(x_prev, features.get("x")):
            # The next steps' inputs are the targets, whose features are known.
            first = self.frame_transformation(x_prev[:, 0])
            frame = join_time((first[:, None], features["frame"][:, :-1]))
        else:
            frame = split_time(self.frame_transformation(x_prev.flatten(0, 1)), x_prev.shape[:2])

        def draw(features: Features, noise: Sequence[Tensor]) -> Step:
            return self._draw(features["frame"], features, noise[0], posterior)

        return fold_time(draw, {**features, "frame": frame}, noise), state

    def _draw(self, frame: Tensor, features: Features, noise: Tensor, posterior: bool) -> Step:
        """Steps ``[N, ...]`` from the previous frames' features."""
        label, z = features["label"], noise
        q: tuple[Gaussian, ...] = ()
        if posterior:
            fed = self.config.posterior == "fed"
            level = self._posterior(frame, label) if fed else Gaussian(features["mu"], features["logvar"])
            q, z = (level,), level.sample(z)
        # torch.cat keeps the channels-last layout only if all parts have it.
        z = z.to(frame.dtype).contiguous(memory_format=torch.channels_last)
        fused = self.Decoder_Fusion(torch.cat((frame, label, z), dim=1))
        x_hat = at_least_float32(self.Generator(fused))
        if self.config.output == "sigmoid":
            x_hat = torch.sigmoid(x_hat)
        return Step(x_hat, q, (standard_normal(z),))

    def _posterior(self, frame: Tensor, label: Tensor) -> Gaussian:
        """q(z | frame, label) from features ``[N, ...]``."""
        q = to_gaussian(self.Gaussian_Predictor(torch.cat((frame, label), dim=1)))
        return clamp_logvar(q, self.config.logvar_clamp)


class LabelEncoder(nn.Sequential):
    """Label images to features. This is the only part of the model with batch norm.

    Args:
        in_channels: channels of the label images.
        out_channels: channels of the features.
        per_step: whether each time step is normalised by its own statistics in training mode.
    """

    def __init__(self, in_channels: int, out_channels: int, per_step: bool) -> None:
        super().__init__(
            nn.ReflectionPad2d(3),
            nn.Conv2d(in_channels, out_channels // 2, 7),
            BatchNorm(out_channels // 2),
            nn.Identity(),  # the course wrote LeakyReLU(True): slope 1
            ResidualBlock(out_channels // 2, out_channels),
        )
        self.per_step = per_step

    def forward(self, x: Tensor) -> Tensor:
        """``[B, K, in, H, W] -> [B, K, out, H, W]``."""
        B_K = x.shape[:2]
        pad, conv, norm, activation, block = self
        y = conv(pad(x.flatten(0, 1)))
        if self.training and self.per_step:
            assert isinstance(norm, nn.BatchNorm2d)
            y = batch_norm_per_step(norm, split_time(y, B_K)).flatten(0, 1)
        else:
            y = norm(y)
        return split_time(block(activation(y)), B_K)


def frame_encoder(in_channels: int, out_channels: int) -> nn.Sequential:
    """Frames to features (course: RGB_Encoder)."""
    c8, c4, c2 = out_channels // 8, out_channels // 4, out_channels // 2
    return nn.Sequential(
        ResidualBlock(in_channels, c8),
        DepthConvBlock(c8, c8),
        ResidualBlock(c8, c4),
        DepthConvBlock(c4, c4),
        ResidualBlock(c4, c2),
        DepthConvBlock(c2, c2),
        nn.Conv2d(c2, out_channels, 3, padding=1),
    )


def gaussian_head(in_channels: int, z_dim: int) -> nn.Sequential:
    """Features to the posterior's mu and logvar, ``2 * z_dim`` channels (course: Gaussian_Predictor)."""
    c4, c2 = z_dim // 4, z_dim // 2
    return nn.Sequential(
        ResidualBlock(in_channels, c4),
        DepthConvBlock(c4, c4),
        ResidualBlock(c4, c2),
        DepthConvBlock(c2, c2),
        ResidualBlock(c2, z_dim),
        nn.Identity(),  # the course wrote LeakyReLU(True): slope 1
        nn.Conv2d(z_dim, 2 * z_dim, 1),
    )


def fusion_net(in_channels: int, out_channels: int) -> nn.Sequential:
    """Frame features, label features and z to the generator's input (course: Decoder_Fusion)."""
    c4, c2, out2 = in_channels // 4, in_channels // 2, out_channels // 2
    return nn.Sequential(
        DepthConvBlock(in_channels, in_channels),
        ResidualBlock(in_channels, c4),
        DepthConvBlock(c4, c2),
        ResidualBlock(c2, c2),
        DepthConvBlock(c2, out2),
        nn.Conv2d(out2, out_channels, 1),
    )


def generator(in_channels: int, out_channels: int) -> nn.Sequential:
    """Fused features to a frame (course: Generator)."""
    c2, c4, c8 = in_channels // 2, in_channels // 4, in_channels // 8
    return nn.Sequential(
        DepthConvBlock(in_channels, in_channels),
        ResidualBlock(in_channels, c2),
        DepthConvBlock(c2, c2),
        ResidualBlock(c2, c4),
        DepthConvBlock(c4, c4),
        ResidualBlock(c4, c8),
        DepthConvBlock(c8, c8),
        nn.Conv2d(c8, out_channels, 1),
    )


MODEL = PoseCVAE
