"""Stochastic video generation with LSTMs for vector conditions: robot arms and their actions.

- an encoder turns each frame into a vector h. A frame predictor, an LSTM over (h_{t-1}, z_t, c_{t-1}), gives
  the vector from which the decoder draws frame t, with the skip maps of the last true past frame
- posterior: an LSTM over the encodings of the target frames. Prior: an LSTM over those of the previous
  frames, or N(0, I)
- with several past frames the LSTMs first run over them (burn-in), with z from the posterior, because these
  frames are known. After that the posterior advances only if there is a target
- all state is in the arguments and results of a step, so any batch size works
- ``levels``: more latent maps at the decoder's scales, sampled from coarse to fine. The prior and posterior
  of a level see the decoder's map so far (which depends on the LSTM and on all coarser latents) and the
  previous frame's map; the posterior also sees the target's map
- ``conditional_conv``: the condition scales and shifts the channels of the decoder's convolutions. With
  ``conditional_z`` z does this too, so that it need not pass through the narrow vector g. With
  ``conditional_slope`` the shift is an affine function of the position, after CoordConv (Liu et al. 2018)
- ``normalise``: conditions are normalised by the training clips' mean and standard deviation, which are
  saved with the weights

After Denton & Fergus 2018, "Stochastic Video Generation with a Learned Prior", with its state-dict names.
Levels are after HAF-SVG (Lin et al. 2020) and the ladder VAE (Sønderby et al. 2016), conditional convolution
is after Choi et al. 2019. ``condition[t]`` of a clip belongs to the step that predicts frame t: it is the
original's c_{t-1}.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ...errors import UserError
from ..base import (
    Features,
    ForeignSettings,
    ForeignWeights,
    Gaussian,
    ModelConfig,
    State,
    Step,
    VideoCVAE,
    follows,
)
from ..latents import clamp_logvar, standard_normal
from ..layers import at_least_float32, join_time, split_time
from .backbones import BACKBONES, CELL, STAGES, Decoder, Encoder, Layer
from .checkpoint import load_original, original_settings
from .init import initialise, initialise_scaled
from .recurrent import Cells, FramePredictor, GaussianLSTM, LatentLevel


class SVGConfig(ModelConfig):
    """Settings of the SVG model; the defaults are the original's sizes for robot pushing."""

    name: Literal["svg"] = "svg"
    backbone: Literal["vgg", "dcgan"] = Field(
        default="vgg", description="encoder and decoder; dcgan is the lighter one"
    )
    width: int = Field(
        default=64, ge=1, description="channels of the finest stage; each coarser stage has twice as many"
    )
    norm: Literal["batch", "group"] = Field(
        default="batch",
        description="batch norm (evaluation uses its running statistics), or group norm, which is the same in"
        " training and evaluation",
    )
    batch_norm: Literal["per_step", "pooled"] = Field(
        default="per_step",
        description="training statistics of batch norm if several steps are computed together: for each"
        " step separately (as in the original's loop), or over all of them",
    )
    g_dim: int = Field(default=128, ge=1, description="length of a frame's encoding")
    z_dim: int = Field(default=64, ge=1, description="length of the latent vector")
    rnn_size: int = Field(default=256, ge=1, description="hidden size of the LSTMs")
    predictor_layers: int = Field(default=2, ge=1, description="LSTM layers of the frame predictor")
    posterior_layers: int = Field(default=1, ge=1, description="LSTM layers of the posterior")
    prior_layers: int = Field(default=1, ge=1, description="LSTM layers of the learned prior")
    prior: Literal["learned", "fixed"] = Field(
        default="learned", description="prior of z: an LSTM over the previous frames, or N(0, I)"
    )
    levels: list[Annotated[int, Field(ge=1)]] = Field(
        default=[],
        max_length=STAGES,
        description="channels of additional latent maps, coarsest first, at 1/8, 1/4, 1/2 and 1 of the"
        " frame's size (dcgan: half of that); empty: z is only a vector",
    )
    conditional_conv: bool = Field(
        default=False, description="the condition scales and shifts the decoder's channels"
    )
    conditional_z: bool = Field(
        default=False, description="z scales and shifts these channels too; needs conditional_conv"
    )
    conditional_slope: bool = Field(
        default=False,
        description="the shift also changes linearly over the frame, so that it can depend on the position;"
        " needs conditional_conv",
    )
    normalise: bool = Field(
        default=True,
        description="subtract the training clips' mean from the conditions and divide by their standard"
        " deviation",
    )
    last_frame_skip: bool = Field(
        default=False, description="skip maps of the previous frame instead of the last true past one"
    )
    legacy_skip: bool = Field(
        default=False,
        description="skip maps one frame too early, as with the original's `i < n_past`: those of the last"
        " past frame but one (or of the only one)",
    )
    init: Literal["original", "scaled"] = Field(
        default="original",
        description="original: all weights with standard deviation 0.02; scaled: the LSTMs' linear layers by"
        " their number of inputs, and a posterior of small variance with means as widely spread as the prior",
    )
    past_loss: bool = Field(
        default=True, description="the training loss includes the steps between past frames (original)"
    )
    logvar_clamp: float | None = Field(
        default=None,
        gt=0,
        description="a number c keeps every logvar in [-c, c]; null: unbounded, as in the original",
    )

    @model_validator(mode="after")
    def _one_skip_rule(self) -> SVGConfig:
        if self.last_frame_skip and self.legacy_skip:
            raise ValueError("legacy_skip: has no meaning with last_frame_skip; set one of them")
        for key in ("conditional_z", "conditional_slope"):
            if getattr(self, key) and not self.conditional_conv:
                raise ValueError(f"{key}: needs conditional_conv")
        return self


class SVGState(NamedTuple):
    """The state that one step passes to the next.

    Attributes:
        predictor, posterior, prior: (h, c) of every layer of the LSTM, each ``[B, rnn_size]``; empty for the
            fixed prior.
        skips: the terms that the skip maps add to each decoder stage (``Decoder.sides``); empty with
            ``last_frame_skip``.
    """

    predictor: Cells
    posterior: Cells
    prior: Cells
    skips: tuple[Tensor, ...]


class SVG(VideoCVAE):
    """The SVG model (see the module's docstring).

    Args:
        config: sizes and switches.
        condition_shape: (D,), the length of the condition vectors.

    Attributes:
        condition_mean, condition_std: ``[D]``, saved with the weights; 0 and 1 before
            ``set_condition_stats``, and always without ``normalise``.

    Raises:
        UserError: the conditions are images. From ``noise_shapes``: H or W is not a multiple of 16.
    """

    Config: ClassVar[type[ModelConfig]] = SVGConfig
    condition_mean: Tensor
    condition_std: Tensor

    def __init__(self, config: SVGConfig, condition_shape: tuple[int, ...]) -> None:
        super().__init__()
        if len(condition_shape) != 1:
            raise UserError(
                f"model.name: svg needs vectors as conditions, not shape {condition_shape}",
                "for label images choose model.name=pose or model.name=reference",
            )
        self.config = config
        g, z, rnn, D = config.g_dim, config.z_dim, config.rnn_size, condition_shape[0]
        encoder, decoder = BACKBONES[config.backbone]
        learned = config.prior == "learned"
        self.encoder: Encoder = encoder(g, config.width, config.norm)
        drive = (D if config.conditional_conv else 0) + (z if config.conditional_z else 0)
        self.decoder: Decoder = decoder(g, config.width, config.norm, drive)
        self.frame_predictor = FramePredictor(g + z + D, g, rnn, config.predictor_layers, config.norm)
        self.posterior = GaussianLSTM(g, z, rnn, config.posterior_layers)
        self.prior = GaussianLSTM(g, z, rnn, config.prior_layers) if learned else None
        if config.conditional_slope:
            for module in self.decoder.modules():
                if isinstance(module, Layer):
                    module.add_slope()
        initialise(self)
        if config.init == "scaled":
            initialise_scaled(self.frame_predictor, self.posterior, self.prior)
        self.levels = nn.ModuleList(
            LatentLevel(self.decoder.channels[s], channels, learned)
            for s, channels in enumerate(config.levels)
        )
        self.register_buffer("condition_mean", torch.zeros(D))
        self.register_buffer("condition_std", torch.ones(D))

    def set_condition_stats(self, mean: Tensor, std: Tensor) -> None:
        """See ``VideoCVAE``. Does nothing without ``normalise``."""
        if self.config.normalise:
            self.condition_mean.copy_(mean)
            self.condition_std.copy_(std)

    def noise_shapes(self, size: tuple[int, int]) -> list[tuple[int, ...]]:
        """``(z_dim,)``, then one map ``(levels[s], h, w)`` for each further level."""
        H, W = size
        if H % CELL or W % CELL:
            raise UserError(
                f"data.height, data.width: svg needs multiples of {CELL}, these are {H}x{W}",
                "the original is made for 64x64",
            )
        cell = self.decoder.coarsest
        maps = [(n, H * 2**s // cell, W * 2**s // cell) for s, n in enumerate(self.config.levels)]
        return [(self.config.z_dim,), *maps]

    def check_batches(self, size: tuple[int, int], rows: int) -> None:
        """See ``VideoCVAE``. Batch norm needs two rows for its statistics."""
        super().check_batches(size, rows)
        if self.config.norm == "batch" and rows < 2:
            raise UserError(
                f"train.batch_size: {rows} row in a micro-batch is too few for the statistics of"
                " model.norm=batch",
                "raise it, lower train.accumulate, change train.prior_share, or set model.norm=group",
            )

    def foreign_weights(self, path: Path) -> ForeignWeights:
        """The weights of a file of the original code (``model.pth``)."""
        return load_original(path, self.state_dict())

    @classmethod
    def foreign_settings(cls, path: Path) -> ForeignSettings:
        """The sizes and options of a file of the original code."""
        return original_settings(path)

    def encode(self, condition: Tensor, targets: Tensor | None = None) -> Features:
        """The targets' encodings ``h [B, K, g_dim]`` and, with ``levels``, their maps.

        In training mode this updates the batch norm's running statistics: call it once for each step.
        """
        features = {"condition": self._normalised(condition)}
        if targets is None:
            return features
        h, maps = self._see(targets)
        return {**features, "x": targets, "h": h, **self._level_maps(maps)}

    def start(self, past: Tensor, condition: Tensor) -> State:
        """Run over the past frames, with z at the posterior's mean."""
        return self._burn_in(past, condition, None)[1]

    def burn_in(self, past: Tensor, condition: Tensor, noise: Sequence[Tensor]) -> tuple[Step | None, State]:
        """As ``start``, with z drawn from the posterior; with ``past_loss`` also predictions of past frames.

        Their skip maps are those of the previous, true frame.
        """
        return self._burn_in(past, condition, noise)

    def step(
        self, state: State, x_prev: Tensor, features: Features, noise: Sequence[Tensor], posterior: bool
    ) -> tuple[Step, State]:
        """Predict one frame."""
        one = {name: value[:, None] for name, value in features.items()}
        steps, state = self.unroll(state, x_prev[:, None], one, [n[:, None] for n in noise], posterior)

        def only(levels: tuple[Gaussian, ...]) -> tuple[Gaussian, ...]:
            return tuple(Gaussian(g.mu[:, 0], g.logvar[:, 0]) for g in levels)

        return Step(steps.x_hat[:, 0], only(steps.q), only(steps.p)), state

    def unroll(
        self, state: State, x_prev: Tensor, features: Features, noise: Sequence[Tensor], posterior: bool
    ) -> tuple[Step, State]:
        """K steps. Frames are encoded and decoded in one batch of B * K; only the LSTMs run step by step."""
        h, maps = self._previous(x_prev, features)
        g, drive, q, p, state = self._advance(state, h, features, noise[0], posterior)
        sides = self.decoder.sides([m.flatten(0, 1) for m in maps]) if not state.skips else state.skips
        return self._draw(g, drive, q, p, maps, sides, features, noise[1:], posterior), state

    # --- parts ------------------------------------------------------------------------------------

    def _steps(self, count: int) -> int:
        """Number of groups of steps, among ``count``, that batch norm normalises separately."""
        return count if self.config.batch_norm == "per_step" else 1

    def _normalised(self, condition: Tensor) -> Tensor:
        return (condition - self.condition_mean) / self.condition_std

    def _see(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Frames ``[B, K, 3, H, W]`` to ``h [B, K, g_dim]``, float32, and maps ``[B, K, C, h, w]``."""
        B_K = x.shape[:2]
        h, maps = self.encoder(x.flatten(0, 1), self._steps(B_K[1]))
        return split_time(at_least_float32(h), B_K), [split_time(m, B_K) for m in maps]

    def _level_maps(self, maps: Sequence[Tensor]) -> Features:
        return {f"map{s}": maps[s] for s in range(len(self.levels))}

    def _previous(self, x_prev: Tensor, features: Features) -> tuple[Tensor, list[Tensor]]:
        """``_see`` for the previous frames; those that are also targets are not encoded again.

        This saves a third of the convolutions under teacher forcing.
        """
        if self.config.last_frame_skip or not follows(x_prev, features.get("x")):
            return self._see(x_prev)
        h, maps = self._see(x_prev[:, :1])
        known = [features[f"map{s}"][:, :-1] for s in range(len(self.levels))]
        together = [join_time(pair) for pair in zip(maps, known, strict=False)]
        return torch.cat((h, features["h"][:, :-1]), 1), together

    def _burn_in(
        self, past: Tensor, condition: Tensor, noise: Sequence[Tensor] | None
    ) -> tuple[Step | None, State]:
        B, P = past.shape[:2]
        h, maps = self._see(past)
        skip = max(P - 2, 0) if self.config.legacy_skip else P - 1
        skips = () if self.config.last_frame_skip else self.decoder.sides([m[:, skip] for m in maps])
        state = SVGState(
            self.frame_predictor.initial(h),
            self.posterior.initial(h),
            () if self.prior is None else self.prior.initial(h),
            skips,
        )
        if P == 1:
            return None, state
        features = {"condition": self._normalised(condition[:, 1:]), "h": h[:, 1:]}
        features |= self._level_maps([m[:, 1:] for m in maps])
        z_noise = h.new_zeros(B, P - 1, self.config.z_dim) if noise is None else noise[0]
        g, drive, q, p, state = self._advance(state, h[:, :-1], features, z_noise, posterior=True)
        if noise is None or not self.config.past_loss:
            return None, state
        before = [m[:, :-1] for m in maps]
        sides = self.decoder.sides([m.flatten(0, 1) for m in before])
        return self._draw(g, drive, q, p, before, sides, features, noise[1:], posterior=True), state

    def _advance(
        self, state: SVGState, h: Tensor, features: Features, noise: Tensor, posterior: bool
    ) -> tuple[Tensor, Tensor | None, tuple[Gaussian, ...], tuple[Gaussian, ...], SVGState]:
        """Run the LSTMs over K steps.

        Returns:
            The decoder's input ``[B, K, g_dim]``; the vectors ``[B, K, D]`` that scale and shift its
            channels, or None; q and p of the vector z; the new state.
        """
        q: tuple[Gaussian, ...] = ()
        cells, prior_cells = state.posterior, state.prior
        if self.prior is None:
            p = standard_normal(noise)
        else:
            p, prior_cells = self.prior(h, prior_cells)
            p = self._clamped(p)
        if posterior:
            level, cells = self.posterior(features["h"], cells)
            q = (self._clamped(level),)
        z = (q[0] if posterior else p).sample(noise)
        condition = features["condition"].to(h.dtype)
        seen = torch.cat((h, z, condition), 2)
        g, predictor = self.frame_predictor(seen, state.predictor, self._steps(h.shape[1]))
        drive = None
        if self.config.conditional_conv:
            drive = torch.cat((condition, z), 2) if self.config.conditional_z else condition
        return g, drive, q, (p,), SVGState(predictor, cells, prior_cells, state.skips)

    def _draw(
        self,
        g: Tensor,
        drive: Tensor | None,
        q: tuple[Gaussian, ...],
        p: tuple[Gaussian, ...],
        maps: Sequence[Tensor],
        sides: Sequence[Tensor],
        features: Features,
        noise: Sequence[Tensor],
        posterior: bool,
    ) -> Step:
        """Draw frames from ``g [B, K, g_dim]``, adding the latents of ``levels`` stage by stage."""
        B_K, steps = g.shape[:2], self._steps(g.shape[1])
        condition = None if drive is None else drive.flatten(0, 1)
        # A side is as large as its stage's output.
        cells = sides[0].shape[-2] // 2, sides[0].shape[-1] // 2
        d = self.decoder.first(g.flatten(0, 1), cells, steps, condition)
        for s in range(STAGES):
            d = self.decoder.enter(d)
            if s < len(self.levels):
                target = features[f"map{s}"].flatten(0, 1) if posterior else None
                level = self.levels[s]
                assert isinstance(level, LatentLevel)
                q_s, p_s = level(d, maps[s].flatten(0, 1), target)
                p_s = self._clamped(p_s)
                q_s = None if q_s is None else self._clamped(q_s)
                z = (p_s if q_s is None else q_s).sample(noise[s].flatten(0, 1))
                d = d + level.latent(z.to(d.dtype))
                p += (_split(p_s, B_K),)
                q += () if q_s is None else (_split(q_s, B_K),)
            d = self.decoder.stage(s, d, sides[s], steps, condition)
        return Step(split_time(torch.sigmoid(at_least_float32(d)), B_K), q, p)

    def _clamped(self, gaussian: Gaussian) -> Gaussian:
        return clamp_logvar(gaussian, self.config.logvar_clamp)


def _split(gaussian: Gaussian, shape: torch.Size) -> Gaussian:
    return Gaussian(split_time(gaussian.mu, shape), split_time(gaussian.logvar, shape))


MODEL = SVG
