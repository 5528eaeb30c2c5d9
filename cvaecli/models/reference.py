"""Pose-guided image synthesis as a CVAE: every frame is predicted from the first frame and its label.

- predictions do not depend on one another: no drift, no unrolling, all steps in one batch
- training uses random (reference, target) pairs of a clip. Consecutive frames are nearly equal, so a model
  trained on them learns to copy; distant frames force it to read the pose
- a U-Net over (reference frame, its label, target label), with attention at the coarsest levels, where the
  old and the new place of a limb are a few cells apart. Any frame size is padded to whole coarsest cells
- the finest cells can be patches of pixels; without patches a U-Net does most of its arithmetic at full size
- the first layer's output for the reference is computed once for each clip
- gated output ``m * reference + (1 - m) * generated``, which copies a static background
- condition vectors (a robot's actions and positions) are no pictures: a small network turns them into smooth
  maps, which are added to the features at every level
- a latent map at the coarsest level; its prior is learned from the condition, or N(0, I)

After Balakrishnan et al. 2018, "Synthesizing Images of Humans in Unseen Poses"; conditional prior after
Sohn et al. 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..errors import UserError
from .base import Features, Gaussian, ModelConfig, State, Step, VideoCVAE, fold_time
from .label_features import channels, label_features
from .latents import clamp_logvar, standard_normal, to_gaussian
from .layers import at_least_float32, split_time
from .unet_blocks import ResidualBlock, SelfAttention, gaussian_head, group_norm
from .vector_maps import MapWeights, VectorMaps, add_map

LOGVAR_RANGE = (-8.0, 4.0)  # keeps exp(logvar) and 1 / exp(logvar) far from overflow


class UNetConfig(ModelConfig):
    """Sizes of the U-Net."""

    widths: list[int] = Field(
        default=[32, 64, 128, 256],
        min_length=2,
        description="channels of each level, finest first; height and width halve from level to level",
    )
    patch: int = Field(default=1, ge=1, description="side of the finest level's cells, in pixels")
    encoder_blocks: list[Annotated[int, Field(ge=0)]] = Field(
        default=[0, 1, 2, 2], description="residual blocks of each level on the way down"
    )
    decoder_blocks: list[Annotated[int, Field(ge=0)]] = Field(
        default=[1, 2, 2], description="residual blocks on the way up, finest level first"
    )
    attention_levels: int = Field(
        default=1,
        ge=1,
        description="number of coarsest levels with self-attention, in the encoder and in the decoder",
    )
    z_dim: int = Field(default=4, ge=1, description="latent channels at every cell of the coarsest level")
    prior: Literal["learned", "standard"] = Field(
        default="learned", description="prior of z: a Gaussian computed from the condition, or N(0, I)"
    )
    label_hues: int = Field(
        default=0,
        ge=0,
        description="split the labels' colours into so many hues, each a channel of its own, so that limbs "
        "of different colours do not mix; 0: red, green and blue",
    )

    @model_validator(mode="after")
    def _lengths(self) -> UNetConfig:
        levels = len(self.widths)
        if any(width < 16 or width % 16 for width in self.widths):
            raise ValueError("widths: must be multiples of 16 (the groups of the group norm)")
        if len(self.encoder_blocks) != levels or len(self.decoder_blocks) != levels - 1:
            raise ValueError(
                f"encoder_blocks: {levels} widths need {levels} encoder_blocks, {levels - 1} decoder_blocks"
            )
        if self.attention_levels > levels:
            raise ValueError(f"attention_levels: there are only {levels} levels, one for each of widths")
        if self.label_hues in (1, 2):
            raise ValueError("label_hues: must be 0, or 3 or more")
        return self


class ReferenceConfig(UNetConfig):
    """Settings of the reference model."""

    name: Literal["reference"] = "reference"


class ReferenceCVAE(VideoCVAE):
    """The reference model (see the module's docstring).

    Args:
        config: sizes and switches.
        condition_shape: (C, H, W) of the label images, which have the frames' size, or (D,), the length of
            the condition vectors.

    Raises:
        UserError: ``label_hues`` with vectors. From ``average_over_flips``: the conditions are vectors.
    """

    Config: ClassVar[type[ModelConfig]] = ReferenceConfig
    parallel: ClassVar[bool] = True
    sampling: ClassVar[str] = "pairs"
    mixes: ClassVar[bool] = True
    ends: ClassVar[tuple[str, ...]] = "stem", "posterior", "prior", "latent", "vector", "out"
    previous_channels: ClassVar[int] = 0
    """Channels of the previous frame that the U-Net sees; 0: it does not see it."""

    def __init__(self, config: UNetConfig, condition_shape: tuple[int, ...]) -> None:
        super().__init__()
        images = len(condition_shape) == 3
        if config.label_hues and not images:
            raise UserError(
                "model.label_hues: the conditions are vectors (actions, positions), which have no colours",
                "set model.label_hues=0",
            )
        self.config, self._flips = config, False
        patch, self.cell = config.patch, config.patch * 2 ** (len(config.widths) - 1)  # pixels
        widths = config.widths
        label = channels(condition_shape[0], config.label_hues) if images else 0
        self.vector = None if images else VectorMaps(condition_shape[0], widths)
        inputs = 3 + label, label, self.previous_channels
        self.stem = nn.Conv2d(sum(inputs), widths[0], patch + 2, stride=patch, padding=1)
        self._label, self._previous = inputs[0], inputs[0] + inputs[1]  # first channels in the stem
        attended = len(widths) - config.attention_levels  # the finest attended level
        self.encoder = nn.ModuleList(
            nn.Sequential(
                *(ResidualBlock(width, width) for _ in range(n)),
                *([SelfAttention(width)] if attended <= level < len(widths) - 1 else []),
            )
            for level, (width, n) in enumerate(zip(widths, config.encoder_blocks, strict=True))
        )
        self.down = nn.ModuleList(
            nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairwise(widths)
        )
        self.attention = SelfAttention(widths[-1])
        self.posterior_stem = nn.Sequential(
            nn.PixelUnshuffle(self.cell // 2),
            nn.Conv2d(3 * (self.cell // 2) ** 2, 64, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(64, 128, 3, stride=2, padding=1),
            nn.SiLU(),
        )
        self.posterior = gaussian_head(128 + widths[-1], config.z_dim)
        self.prior = gaussian_head(widths[-1], config.z_dim) if config.prior == "learned" else None
        self.latent = nn.Conv2d(config.z_dim, widths[-1], 1)
        self.middle = ResidualBlock(widths[-1], widths[-1])
        self.up = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in pairwise(widths))
        self.decoder = nn.ModuleList()
        for level, (width, n) in enumerate(zip(widths[:-1], config.decoder_blocks, strict=True)):
            blocks = [ResidualBlock(2 * width if k == 0 else width, width) for k in range(n)]
            join = nn.Sequential(*blocks) if n else nn.Conv2d(2 * width, width, 3, padding=1)
            self.decoder.append(nn.Sequential(join, SelfAttention(width)) if level >= attended else join)
        self.out_norm = group_norm(widths[0])
        self.out = nn.Conv2d(widths[0], self.drawn_channels * patch**2, 3, padding=1)
        with torch.no_grad():
            self.out.weight.mul_(0.1)  # at the start: a grey frame, and a gate of about one half

    def average_over_flips(self, wanted: bool = True) -> None:
        """See the base class. The second prediction takes as long as the first."""
        if wanted and self.vector is not None:
            raise UserError(
                "eval.average_flips: the conditions are vectors (actions, positions), which would not fit a"
                " mirrored picture",
                "set eval.average_flips=false",
            )
        self._flips = wanted

    def set_condition_stats(self, mean: Tensor, std: Tensor) -> None:
        """See the base class."""
        if self.vector is not None:
            self.vector.normalise_by(mean, std)

    def noise_shapes(self, size: tuple[int, int]) -> list[tuple[int, ...]]:
        """One level: ``(z_dim, H / cell, W / cell)``, rounded up."""
        return [(self.config.z_dim, -(-size[0] // self.cell), -(-size[1] // self.cell))]

    def encode(self, condition: Tensor, targets: Tensor | None = None) -> Features:
        """The stem's output for the labels, or the weights of the vectors' maps; and the posterior stem's
        output for targets."""
        label, K = condition.flatten(0, 1), condition.shape[1]
        if self.vector is not None:
            features = {"vector": self.vector(label)}
        else:
            seen = self._features(label)
            features = {"label": self._stem(seen, self._label)}
            if self._averages:
                # What is seen of a mirrored label is the mirror image, unless padding changes sides.
                padded = label.shape[-1] % self.cell
                mirrored = self._features(label.flip(-1)) if padded else seen.flip(-1)
                features["flipped"] = self._stem(mirrored, self._label)
        if targets is not None:
            features["target"] = self.posterior_stem(self._pad(targets.flatten(0, 1)) * 2 - 1)
        return {name: split_time(x, (-1, K)) for name, x in features.items()}

    def start(self, past: Tensor, condition: Tensor) -> State:
        """The reference, which is the last given frame, and the stem's output for it and its label (but not
        its vector); if flips are averaged, also those of the mirrored reference."""
        reference, label = past[:, -1], condition[:, -1]
        state: State = self._start(reference, label)
        if self._averages:
            state += self._start(reference.flip(-1), label.flip(-1))
        return state

    def step(
        self, state: State, x_prev: Tensor, features: Features, noise: Sequence[Tensor], posterior: bool
    ) -> tuple[Step, State]:
        """Predict one frame. ``x_prev`` is used only with ``previous_channels``."""
        reference, seen = state[:2]
        if self.vector is None:
            maps, h = MapWeights(), seen + features["label"]
        else:
            maps = self.vector.split(features["vector"])
            h = add_map(seen, maps.down[0])
        h, skips = self._down(self._add_previous(h, x_prev), maps.down)
        p = self._prior(h)
        q: tuple[Gaussian, ...] = ()
        z = p.sample(noise[0])
        if posterior:
            n = len(features["target"])  # the first n rows have targets; the others keep z from the prior
            q = (self._gaussian(self.posterior(torch.cat((features["target"], h[:n]), 1))),)
            z = torch.cat((q[0].sample(noise[0][:n]), z[n:]))
        x_hat = self._up(h, z, skips, maps.up, reference, x_prev)
        if self._averages:
            (reference, seen), x_prev = state[2:], x_prev.flip(-1)
            h, skips = self._down(self._add_previous(seen + features["flipped"], x_prev), ())
            x_hat = (x_hat + self._up(h, z.flip(-1), skips, (), reference, x_prev).flip(-1)) / 2
        return Step(x_hat, q, (p,)), state

    def unroll(
        self, state: State, x_prev: Tensor, features: Features, noise: Sequence[Tensor], posterior: bool
    ) -> tuple[Step, State]:
        """All K steps as one batch of B * K."""
        K = x_prev.shape[1]
        # With a single clip this copies nothing.
        repeated = tuple(part[:, None].expand(-1, K, -1, -1, -1).flatten(0, 1) for part in state)
        if self.previous_channels:
            features = {**features, "x_prev": x_prev}

        def draw(features: Features, noise: Sequence[Tensor]) -> Step:
            fed = features.get("x_prev", repeated[0])
            return self.step(repeated, fed, features, noise, posterior)[0]

        return fold_time(draw, features, noise), state

    # --- parts ------------------------------------------------------------------------------------

    @property
    def _averages(self) -> bool:
        return self._flips and not self.training

    def _start(self, reference: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """The reference, and the stem's output for it and its label."""
        picture = self._pad(reference) * 2 - 1
        if self.vector is None:
            seen = self._features(label)
            picture = torch.cat((picture.to(seen.dtype, memory_format=torch.channels_last), seen), 1)
        return reference, self._stem(picture, 0)

    def _features(self, label: Tensor) -> Tensor:
        kind = label.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else label.dtype
        return label_features(self._pad(label), self.config.label_hues, dtype)

    def _pad(self, x: Tensor) -> Tensor:
        H, W = x.shape[-2:]
        bottom, right = -H % self.cell, -W % self.cell
        return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x

    def _stem(self, picture: Tensor, first: int) -> Tensor:
        """The stem applied to some of its input channels, from ``first`` on. It is the sum of such parts."""
        stem, picture = self.stem, picture.contiguous(memory_format=torch.channels_last)
        weight = stem.weight[:, first : first + picture.shape[1]]
        return F.conv2d(picture, weight, None if first else stem.bias, stem.stride, stem.padding)

    def _add_previous(self, h: Tensor, x_prev: Tensor) -> Tensor:
        """``h``, the stem's output for reference and condition, plus its output for the previous frame."""
        return h + self._stem(self._pad(x_prev) * 2 - 1, self._previous) if self.previous_channels else h

    def _down(self, h: Tensor, maps: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        """Coarsest features ``[B, C, H / cell, W / cell]`` and the skip maps, finest first."""
        skips: list[Tensor] = []
        for level, blocks in enumerate(self.encoder):
            h = blocks(h)
            if level < len(self.down):
                skips.append(h)
                h = self.down[level](h)
                if maps:
                    h = add_map(h, maps[level + 1])
        return self.attention(h), skips

    def _up(
        self,
        h: Tensor,
        z: Tensor,
        skips: list[Tensor],
        maps: tuple[Tensor, ...],
        reference: Tensor,
        x_prev: Tensor,
    ) -> Tensor:
        """Predicted frames ``[B, 3, H, W]``, of the reference's size, in (0, 1), float32."""
        H, W = reference.shape[-2:]
        h = self.middle(h + self.latent(z.to(h.dtype)))
        for level in reversed(range(len(skips))):
            h = F.interpolate(self.up[level](h), scale_factor=2, mode="nearest")
            if maps:
                h = add_map(h, maps[level])
            h = self.decoder[level](torch.cat((h, skips[level]), 1))
        out = F.pixel_shuffle(self.out(F.silu(self.out_norm(h))), self.config.patch)
        return self._compose(at_least_float32(out), self._pad(reference), x_prev)[..., :H, :W]

    def _compose(self, out: Tensor, reference: Tensor, x_prev: Tensor) -> Tensor:
        """Frames from the U-Net's output ``[B, drawn_channels, H, W]``: each pixel is a mean of the drawn
        colour and the reference's."""
        # Steeper than the plain sigmoid, so that small weights are enough to come close to 0 and 1.
        drawn, gate = torch.sigmoid(2 * out[:, :3]), torch.sigmoid(4 * out[:, 3:])
        return torch.lerp(drawn, reference, gate)

    def _prior(self, h: Tensor) -> Gaussian:
        if self.prior is not None:
            return self._gaussian(self.prior(h))
        return standard_normal(h[:, :1].expand(-1, self.config.z_dim, -1, -1))

    @property
    def drawn_channels(self) -> int:
        """Numbers that the U-Net gives for each pixel: a colour, and the reference's weight."""
        return 4

    @staticmethod
    def _gaussian(output: Tensor) -> Gaussian:
        return clamp_logvar(to_gaussian(output), LOGVAR_RANGE)


MODEL = ReferenceCVAE
