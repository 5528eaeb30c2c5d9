"""The SVG model's LSTMs over K steps, and the latent maps of ``levels``.

- cells are passed in and returned; embeddings and output layers run over all K steps at once
- LSTMs stay in float32 under autocast: sums over hundreds of steps need the precision, and it costs little
- names of the state-dict entries are the original's (``embed``, ``lstm.0.weight_ih``, ``mu_net``, ...)
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from ..base import Gaussian
from ..latents import last_convolution, standard_normal, to_gaussian
from .backbones import Norm, make_norm, normalise

Cells = tuple[tuple[Tensor, Tensor], ...]
"""(h, c) of every layer, each ``[B, hidden]``."""

HEAD_WIDTH = 64  # largest number of channels between a level's two convolutions


class LSTM(nn.Module):
    """Linear embedding, then a stack of LSTM cells (the original's lstm without its output layer)."""

    def __init__(self, inputs: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, hidden)
        self.lstm = nn.ModuleList(nn.LSTMCell(hidden, hidden) for _ in range(layers))

    def initial(self, like: Tensor) -> Cells:
        """Zeros with the number of rows of ``like``."""
        zeros = like.new_zeros(like.shape[0], self.embed.out_features)
        return tuple((zeros, zeros) for _ in self.lstm)

    def run(self, x: Tensor, cells: Cells) -> tuple[Tensor, Cells]:
        """``[B, K, inputs] -> [B, K, hidden]``, and the cells after the last step."""
        states, outputs = list(cells), []
        for h in self.embed(x).unbind(1):
            for n, cell in enumerate(self.lstm):
                states[n] = cell(h, states[n])
                h = states[n][0]
            outputs.append(h)
        return torch.stack(outputs, 1), tuple(states)


class FramePredictor(LSTM):
    """LSTM, then a linear layer, a norm and tanh: the decoder's input."""

    def __init__(self, inputs: int, outputs: int, hidden: int, layers: int, norm: Norm) -> None:
        super().__init__(inputs, hidden, layers)
        self.output = nn.ModuleList([nn.Linear(hidden, outputs), make_norm(norm, outputs)])

    def forward(self, x: Tensor, cells: Cells, steps: int) -> tuple[Tensor, Cells]:
        """``[B, K, inputs] -> [B, K, outputs]``. For ``steps`` see ``backbones.normalise``."""
        with _full_precision(x):
            h, cells = self.run(x, cells)
            y = self.output[0](h.flatten(0, 1))[:, :, None, None]
            y = torch.tanh(normalise(self.output[1], y, steps))
        return y.view(*h.shape[:2], -1), cells


class GaussianLSTM(LSTM):
    """LSTM, then ``mu`` and ``logvar`` (the original's gaussian_lstm)."""

    def __init__(self, inputs: int, outputs: int, hidden: int, layers: int) -> None:
        super().__init__(inputs, hidden, layers)
        self.mu_net = nn.Linear(hidden, outputs)
        self.logvar_net = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor, cells: Cells) -> tuple[Gaussian, Cells]:
        """``[B, K, inputs]`` to K Gaussians ``[B, K, outputs]``."""
        with _full_precision(x):
            h, cells = self.run(x, cells)
            return Gaussian(self.mu_net(h), self.logvar_net(h)), cells


class LatentLevel(nn.Module):
    """One of the latent maps of ``levels``: its posterior, its prior and its convolution into the decoder.

    Args:
        channels: channels of the decoder's and the encoder's maps at this scale.
        z_dim: latent channels at every cell.
        learned: whether the prior is learned, or N(0, I).
    """

    def __init__(self, channels: int, z_dim: int, learned: bool) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.posterior = _head(3 * channels, z_dim)
        self.prior = _head(2 * channels, z_dim) if learned else None
        self.latent = nn.Conv2d(z_dim, channels, 1)

    def forward(self, d: Tensor, previous: Tensor, target: Tensor | None) -> tuple[Gaussian | None, Gaussian]:
        """q (None without a target) and p, ``[N, z_dim, h, w]``, from maps ``[N, C, h, w]``.

        Args:
            d: the decoder's map, which depends on all coarser latents.
            previous, target: the encoder's maps of the previous and of the target frame.
        """
        seen = torch.cat((d, previous), 1)
        q = None if target is None else to_gaussian(self.posterior(torch.cat((seen, target), 1)))
        if self.prior is not None:
            return q, to_gaussian(self.prior(seen))
        return q, standard_normal(d.new_zeros(()).expand(d.shape[0], self.z_dim, *d.shape[2:]))


def _full_precision(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """No autocast. Exported graphs are in float32 anyway, and ONNX has no such context."""
    if torch.compiler.is_exporting():
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def _head(inputs: int, z_dim: int) -> nn.Sequential:
    """Convolutions to mu and logvar, which start near zero: q, p and N(0, I) are nearly equal then."""
    width = min(inputs, HEAD_WIDTH)
    last = last_convolution(width, z_dim)
    return nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1), nn.LeakyReLU(0.2), last)
