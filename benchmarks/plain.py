"""The plain reference path: textbook training loop and rollout of both model families.

float32, contiguous NCHW, one step after the other; every frame is encoded wherever it is used, as input
and as target; labels step by step; an ordinary optimiser; the losses fetched at every step. From the tool
it takes the modules that hold the weights, the noise and the schedules, but no computations: the loops follow
the course template and Denton & Fergus (2018).

Speed is measured against this path, and the tool's results must agree with it up to rounding. Two things
differ by design. The running statistics of batch norm count a frame here as often as it is encoded, which
does not affect the losses and gradients of a training step. And this path supports only the course's
settings: ``plain_training.check`` names the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvaecli.errors import UserError
from cvaecli.models.base import VideoCVAE
from cvaecli.models.layers import DepthConv, DepthConvBlock, GatedFeedForward, ResidualBlock
from cvaecli.models.pose import PoseCVAE
from cvaecli.models.svg.backbones import Block, Layer
from cvaecli.models.svg.model import SVG
from cvaecli.models.svg.recurrent import LSTM, Cells, GaussianLSTM

Normal = tuple[Tensor, Tensor]
"""mu and logvar of a diagonal normal distribution."""


class Prediction(NamedTuple):
    """One step: the frame ``[B, C, H, W]``, and q and p of each latent level (q empty: z from the prior)."""

    x_hat: Tensor
    q: list[Normal]
    p: list[Normal]


# --- pose family --------------------------------------------------------------------------------------


def compute(module: nn.Module, x: Tensor) -> Tensor:
    """A part of the course architecture, computed as in the course's code."""
    y: Tensor
    if isinstance(module, ResidualBlock):
        y = F.leaky_relu(module.conv1(x), 0.01)
        y = F.leaky_relu(module.conv2(y), 0.01) + module.skip(x)
    elif isinstance(module, DepthConv):
        y = module.depth_conv(F.leaky_relu(module.conv1[0](x), 0.01))
        y = module.conv2(y) + module.adaptor(x)
    elif isinstance(module, GatedFeedForward):
        a, b = module.conv(x).chunk(2, 1)
        y = x + module.conv_out(a * F.leaky_relu(b, 0.1))
    elif isinstance(module, DepthConvBlock):
        y = compute(module.block, x)
    elif isinstance(module, nn.Sequential):
        y = x
        for part in module:
            y = compute(part, y)
    else:
        y = module(x)
    return y


class PlainPose:
    """The course's step; it has no state."""

    def __init__(self, model: PoseCVAE, n_past: int) -> None:
        self.model, self.first = model, n_past

    def step(
        self, t: int, x_prev: Tensor, condition: Tensor, noise: Sequence[Tensor], target: Tensor | None
    ) -> Prediction:
        """Predict frame ``t`` from the frame before and the label ``[B, 3, H, W]``."""
        model, z, q = self.model, noise[0], []
        frame = compute(model.frame_transformation, x_prev)
        label = compute(model.label_transformation, condition)
        if target is not None:
            fed = model.config.posterior == "fed"
            seen = frame if fed else compute(model.frame_transformation, target)
            head = compute(model.Gaussian_Predictor, torch.cat((seen, label), 1))
            mu, logvar = clamped(head.chunk(2, 1), model.config.logvar_clamp)
            z, q = mu + z * torch.exp(0.5 * logvar), [(mu, logvar)]
        x_hat = compute(model.Generator, compute(model.Decoder_Fusion, torch.cat((frame, label, z), 1)))
        if model.config.output == "sigmoid":
            x_hat = torch.sigmoid(x_hat)
        return Prediction(x_hat, q, [standard_normal(z)])


# --- robot family -------------------------------------------------------------------------------------


class PlainSVG:
    """SVG's step and its state over a clip: the LSTMs' cells and the skip maps."""

    def __init__(self, model: SVG, n_past: int) -> None:
        self.model, self.n_past = model, n_past
        self.first = 1 if model.config.past_loss else n_past
        self.skips: list[Tensor] = []
        self.cells: dict[str, Cells] = {}

    def step(
        self, t: int, x_prev: Tensor, condition: Tensor, noise: Sequence[Tensor], target: Tensor | None
    ) -> Prediction:
        """Predict frame ``t`` from the frame before and the condition ``[B, D]``."""
        model = self.model
        condition = (condition - model.condition_mean) / model.condition_std
        h, maps = self.encode(x_prev)
        last_true = self.n_past - 1 if model.config.legacy_skip else self.n_past
        if model.config.last_frame_skip or t <= last_true or not self.skips:
            self.skips = maps
        z, q, p = noise[0], [], [standard_normal(noise[0])]
        seen: list[Tensor] = []
        if model.prior is not None:
            p = [self.gaussian("prior", model.prior, h)]
        if target is not None:
            h_target, seen = self.encode(target)
            q = [self.gaussian("posterior", model.posterior, h_target)]
        mu, logvar = (q or p)[0]
        z = mu + z * torch.exp(0.5 * logvar)
        linear, norm = model.frame_predictor.output
        y = self.recur("predictor", model.frame_predictor, torch.cat((h, z, condition), 1))
        g = torch.tanh(norm(linear(y)[:, :, None, None]))
        return self.decode(g, maps, seen, condition, noise[1:], q, p)

    def encode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """A frame's vector ``[B, g_dim]`` and its four maps, coarsest first."""
        encoder: Any = self.model.encoder
        maps: list[Tensor] = []
        for stage in (encoder.c1, encoder.c2, encoder.c3, encoder.c4):
            for block in blocks(stage):
                x = layer(block.main, x)
            maps.insert(0, x)
            if encoder.pooled:
                x = F.max_pool2d(x, 2)
        return layer(encoder.c5, resized(x, (4, 4))).flatten(1), maps

    def decode(
        self,
        g: Tensor,
        maps: list[Tensor],
        seen: list[Tensor],
        condition: Tensor,
        noise: Sequence[Tensor],
        q: list[Normal],
        p: list[Normal],
    ) -> Prediction:
        """Decode a frame; further latents enter at the decoder's stages, coarsest first."""
        decoder: Any = self.model.decoder
        levels: Any = self.model.levels
        clamp = self.model.config.logvar_clamp
        d = layer(decoder.upc1, g, condition)
        vgg = self.model.encoder.pooled
        H, W = self.skips[0].shape[-2:]
        d = resized(d, (H // 2, W // 2) if vgg else (H, W))
        for s, stage in enumerate((decoder.upc2, decoder.upc3, decoder.upc4, decoder.upc5)):
            if vgg:
                d = F.interpolate(d, scale_factor=2, mode="nearest")
            if s < len(levels):
                level = levels[s]
                known = torch.cat((d, maps[s]), 1)
                if level.prior is None:
                    p = [*p, standard_normal(noise[s])]
                else:
                    p = [*p, clamped(level.prior(known).chunk(2, 1), clamp)]
                if seen:
                    output = level.posterior(torch.cat((known, seen[s]), 1))
                    q = [*q, clamped(output.chunk(2, 1), clamp)]
                mu, logvar = (q if seen else p)[-1]
                d = d + level.latent(mu + noise[s] * torch.exp(0.5 * logvar))
            d = torch.cat((d, self.skips[s]), 1)
            for block in blocks(stage):
                d = layer(block.main, d, condition) if isinstance(block, Block) else block(d)
        return Prediction(torch.sigmoid(d), q, p)

    def recur(self, name: str, lstm: LSTM, x: Tensor) -> Tensor:
        """One step of a stack of LSTM cells: ``[B, inputs] -> [B, hidden]``."""
        x = lstm.embed(x)
        zeros = x.new_zeros(x.shape)
        cells = list(self.cells.get(name, [(zeros, zeros)] * len(lstm.lstm)))
        for n, cell in enumerate(lstm.lstm):
            cells[n] = cell(x, cells[n])
            x = cells[n][0]
        self.cells[name] = tuple(cells)
        return x

    def gaussian(self, name: str, lstm: GaussianLSTM, x: Tensor) -> Normal:
        """One step of an LSTM whose output is a normal distribution."""
        y = self.recur(name, lstm, x)
        return clamped((lstm.mu_net(y), lstm.logvar_net(y)), self.model.config.logvar_clamp)


def layer(parts: Layer, x: Tensor, condition: Tensor | None = None) -> Tensor:
    """Convolution, norm, the condition's scale and shift, activation."""
    y = parts[1](parts[0](x))
    if parts.modulate is not None and condition is not None:
        scale, shift = parts.modulate(condition)[:, :, None, None].chunk(2, 1)
        y = y * (1 + scale) + shift
    return torch.tanh(y) if parts.activation == "tanh" else F.leaky_relu(y, 0.2)


def blocks(stage: nn.Module) -> list[Any]:
    """The blocks of a stage, which may be a single block."""
    return list(stage) if isinstance(stage, nn.ModuleList) else [stage]


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """For frames other than 64x64: average or repeat the 4x4 map that is combined with the vector."""
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="area")


# --- both ---------------------------------------------------------------------------------------------


def standard_normal(like: Tensor) -> Normal:
    """N(0, I)."""
    return torch.zeros_like(like), torch.zeros_like(like)


def clamped(gaussian: Sequence[Tensor], limit: float | None) -> Normal:
    """mu and logvar, the latter within [-limit, limit]."""
    mu, logvar = gaussian
    return mu, logvar if limit is None else logvar.clamp(-limit, limit)


def kl(q: Normal, p: Normal) -> Tensor:
    """KL(q || p) of diagonal normals summed over the latent axes, ``[B]`` nats, as in SVG's code."""
    sigma_q, sigma_p = torch.exp(0.5 * q[1]), torch.exp(0.5 * p[1])
    terms = torch.log(sigma_p / sigma_q) + (q[1].exp() + (q[0] - p[0]) ** 2) / (2 * p[1].exp()) - 0.5
    return terms.flatten(1).sum(1)


def begin(model: VideoCVAE, n_past: int) -> PlainPose | PlainSVG:
    """The plain computation of a clip.

    Raises:
        UserError: the model has no plain path.
    """
    if isinstance(model, PoseCVAE):
        return PlainPose(model, n_past)
    if isinstance(model, SVG):
        return PlainSVG(model, n_past)
    raise UserError(f"model.name: {type(model).__name__} has no plain path", "pose and svg have one")


def unroll(
    model: VideoCVAE,
    n_past: int,
    frames: Tensor,
    condition: Tensor,
    noise: Sequence[Tensor],
    is_forced: Sequence[bool],
    detach: bool,
) -> list[Prediction]:
    """A training batch, step by step.

    Args:
        frames, condition: ``[B, T, ...]``.
        noise: ``[B, T - 1, *shape]`` per latent level.
        is_forced: for each of the T - n_past predicted frames, whether it is predicted from a true one.
        detach: no gradient through the frames that are fed back.

    Returns:
        The steps that the loss uses; the last one predicts the last frame.
    """
    network, predictions = begin(model, n_past), []
    x = frames[:, 0]
    for t in range(1 if isinstance(network, PlainSVG) else n_past, frames.shape[1]):
        if t <= n_past or is_forced[t - n_past]:
            x = frames[:, t - 1]
        made = network.step(t, x, condition[:, t], [n[:, t - 1] for n in noise], frames[:, t])
        x = made.x_hat.detach() if detach else made.x_hat
        if t >= network.first:
            predictions.append(made)
    return predictions


@torch.no_grad()
def rollout(
    model: VideoCVAE,
    past: Tensor,
    past_condition: Tensor,
    conditions: Iterable[Tensor],
    noise: Callable[[int, int], Sequence[Tensor]],
) -> Iterator[Tensor]:
    """Predict frame after frame from the model's own predictions.

    Args:
        model: in evaluation mode.
        past, past_condition: ``[B, n_past, ...]``.
        conditions: conditions of the frames to predict, ``[B, ...]`` each.
        noise: see ``cvaecli.engine.rollout.Noise``.

    Yields:
        ``[B, C, H, W]``.
    """
    P = past.shape[1]
    network = begin(model, P)
    if isinstance(network, PlainSVG):
        still = [n[:, 0].to(past.device).zero_() for n in noise(0, 1)]
        for t in range(1, P):  # z at the posterior's mean: these frames are known
            network.step(t, past[:, t - 1], past_condition[:, t], still, past[:, t])
    x = past[:, -1]
    for k, condition in enumerate(conditions):
        drawn = [n[:, 0].to(past.device) for n in noise(k, 1)]
        x = network.step(P + k, x, condition, drawn, None).x_hat
        yield x
