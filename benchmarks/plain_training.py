"""The textbook training loop over the plain path (see plain.py)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import plain
import torch
from torch import Tensor
from torch.nn import functional as F

from cvaecli.config.schema import RunConfig
from cvaecli.data.clip import Clip
from cvaecli.engine.batches import Sampler
from cvaecli.engine.teacher_forcing import forced
from cvaecli.errors import UserError
from cvaecli.models.base import VideoCVAE
from cvaecli.schedules import beta, learning_rate
from cvaecli.seeding import stream

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


class PlainTrainer:
    """The textbook training loop on a copy of a model.

    Args:
        model: its weights are copied.
        clips, sampler: those of the tool's trainer, so that both see the same batches.
        dtype: float64 shows how much of a difference is rounding.

    Raises:
        UserError: the config asks for something that the course's loop does not have.
    """

    def __init__(
        self,
        model: VideoCVAE,
        config: RunConfig,
        device: torch.device,
        clips: Sequence[Clip],
        sampler: Sampler,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check(config)
        self.config, self.device, self.clips, self.dtype = config, device, clips, dtype
        self.model = copy.deepcopy(model).to(device, dtype).to(memory_format=torch.contiguous_format).train()
        self.optimizer = OPTIMIZERS[config.optim.name](
            self.model.parameters(),
            config.optim.lr,
            betas=config.optim.betas,
            weight_decay=config.optim.weight_decay,
        )
        self.total_steps = sum(sampler.steps(epoch) for epoch in range(config.train.epochs))
        self.batches, self.done = sampler.epoch(0), 0

    def step(self) -> dict[str, float]:
        """One optimiser step within the first epoch; its terms are named as in the tool's step events."""
        config, n = self.config, self.done
        forcing = config.teacher_forcing
        assert forcing is not None
        K = config.train.window - config.data.n_past
        weight = beta(config.kl, n, 0, total_steps=self.total_steps, epochs=config.train.epochs)
        weight *= config.kl.weight
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config.optim, n, 0, total_steps=self.total_steps)
        frames, condition = self.load(*next(self.batches))
        predictions = plain.unroll(
            self.model,
            config.data.n_past,
            frames,
            condition,
            self.noise(frames),
            forced(forcing, config.seed, n, 0, time_steps=K),
            detach=forcing.detach != "off",
        )
        mse, kld = (torch.zeros((), device=self.device, dtype=self.dtype) for _ in range(2))
        for made, x in zip(predictions, frames[:, -len(predictions) :].unbind(1), strict=True):
            mse += F.mse_loss(made.x_hat, x)
            for q, p in zip(made.q, made.p, strict=True):
                kld += plain.kl(q, p).mean()
        loss = mse + weight * kld
        if config.train.time_reduction == "mean":
            loss = loss / len(predictions)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        limit = config.train.grad_clip or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.optimizer.step()
        self.done += 1
        means = (mse / len(predictions)).item(), (kld / len(predictions)).item()
        return {
            "loss": means[0] + weight * means[1],
            "recon": means[0],
            "kl": means[1],
            "grad_norm": norm.item(),
        }

    def load(self, clip: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Frames and conditions ``[B, T, ...]``, gathered row by row."""
        rows = [(self.clips[int(c)], f.numpy()) for c, f in zip(clip, frame, strict=True)]
        frames = torch.stack([torch.from_numpy(one.frames[f]) for one, f in rows]).to(self.device) / 255
        condition = torch.stack([torch.from_numpy(one.condition[f]) for one, f in rows]).to(self.device)
        condition = condition / 255 if condition.dtype == torch.uint8 else condition
        return frames.to(self.dtype), condition.to(self.dtype)

    def noise(self, frames: Tensor) -> list[Tensor]:
        """The tool's noise for z: ``[B, T - 1, *shape]`` per latent level."""
        B, T, _, H, W = frames.shape
        generator = stream(self.config.seed, "z", self.done, device=self.device)
        return [
            torch.randn(B, T - 1, *shape, generator=generator, device=self.device).to(self.dtype)
            for shape in self.model.noise_shapes((H, W))
        ]


def check(config: RunConfig) -> None:
    """Refuse settings that the course's loop does not have.

    Raises:
        UserError: names the keys and their required values.
    """
    train, forcing = config.train, config.teacher_forcing
    needed = {
        "train.recon=mse": train.recon == "mse",
        "train.prior_share=0": not train.prior_share,
        "train.ema=null": train.ema is None,
        "train.augment={}": train.augment == type(train.augment)(),
        "kl.reduction=sum": config.kl.reduction == "sum",
        "kl.free_bits=0": not config.kl.free_bits,
        "optim.name=adam": config.optim.name in OPTIMIZERS,
        "teacher_forcing.mode=replace": forcing is not None and forcing.mode == "replace",
        "teacher_forcing.noise=0": forcing is not None and not forcing.noise,
    }
    if missing := [key for key, there in needed.items() if not there]:
        raise UserError("the plain path does not support this training", f"set {' '.join(missing)}")
