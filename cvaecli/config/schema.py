"""The schema of a run config: eight sections, every key with its default and its meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    SerializeAsAny,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

from ..data.kinds import DEFAULT, KINDS
from ..settings import Section


def _expand_home(path: Path) -> Path:
    """``~`` is the home folder here too: no shell has expanded it in a file."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise PydanticCustomError("home", "there is no such user") from None


Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
UserPath = Annotated[Path, AfterValidator(_expand_home)]


def _known_kind(value: Any) -> Any:
    if not isinstance(value, str) or value not in KINDS:
        raise PydanticKnownError("literal_error", {"expected": " or ".join(map(repr, KINDS))})
    return value


_USUAL = KINDS[DEFAULT]


class DataConfig(Section):
    """Which clips, at which size. What a kind has defaults of its own for is declared in data/kinds.py."""

    kind: Annotated[str, BeforeValidator(_known_kind)] = DEFAULT
    """Kind of the data: ``dance`` (frames and label images in train/val/test folders), or ``robot``
    (trajectories with actions and positions, as folders or BAIR's TFRecords)."""
    root: UserPath | None = None
    """Folder of the data set. When unset, the built-in synthetic set is used."""
    height: Annotated[int, Field(ge=8, le=4096)] = _USUAL.height
    """Frame height in pixels after resizing. Each kind has its own default."""
    width: Annotated[int, Field(ge=8, le=4096)] = _USUAL.width
    """Frame width in pixels after resizing. Each kind has its own default."""
    n_past: Positive = _USUAL.n_past
    """True frames given at the start of a rollout. Each kind has its own default."""
    n_future: Positive | None = _USUAL.n_future
    """Frames predicted in an evaluation; null: all that the clip has (val_vi_len - n_past). Each kind has its
    own default."""
    cuts: Literal["auto", "none"] = "auto"
    """Find clip boundaries in the pictures, or take each folder as one clip. A clips.csv wins over both."""
    partial: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training frames used, from the start of the set (partial)."""
    train_frames: Annotated[int, Field(ge=2)] | None = None
    """Use only so many frames of every training clip, from its start; all when unset."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_kind(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or not isinstance(raw.get("kind"), str) or raw["kind"] not in KINDS:
            return raw
        return {**KINDS[raw["kind"]].defaults, **raw}


class AugmentConfig(Section):
    """One random change per training sample, the same for all its frames and label images. Refused where the
    conditions are vectors: a mirrored arm would keep the actions of the real one."""

    flip: Fraction = 0.0
    """Probability of a horizontal flip. Labels are flipped as pictures: left and right sticks swap sides."""
    shift: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (0, 0)
    """Largest shift in pixels, [vertical, horizontal], uniform; frames are continued at the border."""
    zoom: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest relative change of size: the factor is drawn from [1 - zoom, 1 + zoom]."""


class TrainConfig(Section):
    """How long, and on which batches."""

    init: UserPath | None = None
    """Weights to start from: a run's checkpoint, or a course checkpoint (.ckpt) for the pose model."""
    epochs: Positive = 50
    """Number of epochs. Every schedule refers to their total length."""
    steps_per_epoch: Positive | None = None
    """Optimiser steps per epoch; one pass over the windows (for pairs, over the frames) when unset."""
    max_steps: Positive | None = None
    """Stop after this many steps in all. Schedules do not change."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Stop after this many minutes of training in all, those before a resume included. Schedules do not
    change."""
    batch_size: Positive = 2
    """Windows (or pairs) per step, of all processes together."""
    accumulate: Positive = 1
    """Parts of a batch that a process computes one after the other before the optimiser's step: less memory
    for the same step (but batch norm computes its statistics in each part)."""
    window: Annotated[int, Field(ge=2)] = 16
    """Frames of a training window, the given ones included (train_vi_len)."""
    stride: Positive | None = None
    """Distance between window starts; the window's length (no overlap) when unset."""
    sampling: Literal["windows", "pairs"] | None = None
    """windows: consecutive frames of a clip. pairs: the given frames come from anywhere in the clip and only
    the frames to predict are consecutive, so that copying the given frame does not pay and the label must be
    read. The model's own when unset (pairs for the reference model, else windows)."""
    shuffle: bool = True
    """Draw windows in random order with a random offset each epoch; the course template does neither. Without
    it, an epoch of steps_per_epoch goes on where the last one stopped."""
    save_every: Annotated[int, Field(ge=0)] = 0
    """Epochs between two checkpoints that are kept by number; 0 keeps only last, previous and best."""
    save_minutes: Annotated[float, Field(gt=0)] = 5.0
    """Minutes between two checkpoints within a long epoch, to resume from."""
    log_every: Positive = 10
    """Steps between two rows of steps.csv; losses are copied from the device only then."""
    tensorboard: bool = False
    """Also write what metrics.csv and steps.csv hold as TensorBoard files into RUN/tensorboard (the extra
    ``tensorboard``)."""
    recon: Literal["mse", "l1", "optimal_sigma"] = "mse"
    """Reconstruction term of a frame: mean squared error, mean absolute error, or the Gaussian
    likelihood at its optimal sigma, log of the mean squared error / 2 (Rybkin et al. 2021)."""
    prior_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each batch whose z is drawn from the prior, as in prediction, without a KL term: a model that
    in training always sees the target through the posterior relies on z too much (hybrid objective, Sohn et
    al. 2015). Rounded to whole rows of the batch. The other rows keep their ratio of reconstruction to KL."""
    time_reduction: Literal["sum", "mean"] = "sum"
    """Sum (course) or mean of the steps' losses."""
    grad_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient over all parameters; a larger gradient is scaled down. null: no limit."""
    kept_steps: Positive | None = None
    """Keep the inner results of this many time steps in memory and compute the others again in the backward
    pass (activation checkpointing): a third more time, for the memory of so many steps. All are kept when
    unset. Batch norm: pooled statistics are then those of so many steps, and svg's running statistics count
    the first frame of every teacher-forced stretch twice."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, which is then what is evaluated and kept."""
    fast_epochs: Annotated[int, Field(ge=0)] = 0
    """Number of epochs at the start that use only ``fast_partial`` of the frames (fast_train_epoch)."""
    fast_partial: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Share of the training frames in those epochs, from the start of the set (fast_partial)."""
    interpolate_every: Annotated[int, Field(ge=0)] = 0
    """Epochs between two blends of the weights with the initial ones by cosine similarity; 0: never."""
    augment: AugmentConfig = AugmentConfig()
    """Random changes of the training pictures."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.interpolate_every and self.ema is not None:
            raise ValueError(
                "interpolate_every: blends weights that train.ema would not evaluate: it keeps their average;"
                " set one of the two"
            )
        return self


class KLConfig(Section):
    """The KL term: its weight schedule (beta), scale and reduction."""

    schedule: Literal["none", "monotonic", "cyclical", "values"] = "cyclical"
    """none: beta = stop throughout. monotonic: one ramp, then hold. cyclical: cycles of ramp and hold
    (Fu et al. 2019). values: an explicit list, one beta an epoch."""
    start: Annotated[float, Field(ge=0)] = 0.0
    """beta at the start of a ramp."""
    stop: Annotated[float, Field(ge=0)] = 1.0
    """beta at the end of a ramp."""
    cycles: Positive = 4
    """Number of cycles of ``cyclical``."""
    period: Annotated[float, Field(gt=0)] | None = None
    """Length of a cycle (of the one ramp and hold, for monotonic) in units; overrides cycles."""
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of a cycle spent on its ramp."""
    ramp: Literal["linear", "cosine", "sigmoid"] = "linear"
    """Shape of the ramp."""
    unit: Literal["step", "epoch"] = "step"
    """beta changes with every step, or only from epoch to epoch."""
    values: list[Annotated[float, Field(ge=0)]] | None = None
    """beta of each epoch for ``values``."""
    repeat_from: Annotated[int, Field(ge=0)] | None = None
    """After the last of ``values``, start again at this index; when unset the last value is held."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Constant factor beside beta (SVG: 1e-4)."""
    reduction: Literal["sum", "mean", "pixel"] = "sum"
    """sum: nats per frame, over all latent dimensions (course). mean: nats per latent dimension. pixel: nats
    per frame divided by the number of pixel values C * H * W of a frame. The reconstruction term is per pixel
    too, so with pixel and weight 1 the loss is the negative evidence lower bound per pixel at every frame
    size: exactly so for recon optimal_sigma; for mse that of a Gaussian decoder of variance 1/2, for l1 that
    of a Laplace decoder of scale 1."""
    free_bits: Annotated[float, Field(ge=0)] = 0.0
    """Nats per frame below which the KL is not penalised (Kingma et al. 2016)."""

    @model_validator(mode="after")
    def _consistent(self) -> KLConfig:
        if (self.schedule == "values") != (self.values is not None):
            raise ValueError("schedule: values and the list kl.values go together; set both or neither")
        if self.values is not None and not self.values:
            raise ValueError("values: needs at least one number")
        if self.repeat_from is not None and (self.values is None or self.repeat_from >= len(self.values)):
            raise ValueError("repeat_from: must be an index into kl.values")
        return self


class TeacherForcingConfig(Section):
    """What a training step is fed: the true previous frame (forced) or the model's own prediction."""

    ratio: Fraction = 0.0
    """Ratio at the start (tfr)."""
    decay_start: Annotated[int, Field(ge=0)] = 0
    """First epoch at whose start the ratio has fallen (tfr_sde); epoch 0 always has the start ratio."""
    decay: Fraction = 0.0
    """How much the ratio falls each time (tfr_d_step)."""
    every: Positive = 1
    """The ratio falls only at epochs that are multiples of this number."""
    floor: Fraction = 0.0
    """The ratio does not fall below this; a ratio that starts below it stays where it is."""
    coin: Literal["epoch", "batch", "step"] = "epoch"
    """The ratio is the probability of being forced; the coin is tossed for each epoch (course), batch or time
    step."""
    mode: Literal["replace", "blend"] = "replace"
    """Forced steps are fed the true frame, or the blend ratio * true + (1 - ratio) * predicted."""
    detach: Literal["off", "on", "unforced"] = "off"
    """Stop gradients at the fed-back prediction: off never, on always, unforced only where no true frame is
    blended in."""
    noise: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of normal noise added to the fed-back frame, in units of the data range 1."""

    @field_validator("detach", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


class OptimConfig(Section):
    """Optimiser and learning-rate schedule."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimiser."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate (peak)."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay rates of the moment estimates of Adam and AdamW."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay (decoupled for AdamW)."""
    schedule: Literal["constant", "multistep", "cosine"] = "multistep"
    """constant: lr throughout. multistep: times gamma at each milestone. cosine: from lr to min_lr over all
    steps."""
    milestones: list[Annotated[int, Field(ge=0)]] = Field(default=[2, 5])
    """Epochs at which the learning rate of multistep falls."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of multistep."""
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    """Learning rate at the end of cosine."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up from 0, for every schedule."""


class EvalConfig(Section):
    """Free-running validation."""

    every: Annotated[int, Field(ge=0)] = 1
    """Epochs between validations during training; 0: only at the end."""
    frames: Positive | None = None
    """Predicted frames of each clip in validations during training; all when unset."""
    clips: Positive | None = None
    """Clips in validations during training; all when unset."""
    samples: Positive = 1
    """Samples per clip; their mean, best, worst and spread are reported."""
    prior: Literal["sample", "mean"] = "sample"
    """z drawn from the prior, or its mean."""
    batch_size: Positive = 8
    """Clips rolled out together."""
    chunk: Positive = 64
    """Steps encoded together (by parallel models: predicted together); limits memory, changes no result."""
    sample_strips: bool = True
    """Write a strip of truth, posterior reconstruction, rollout and label at every validation."""


class RuntimeConfig(Section):
    """The machine. Nothing here changes results by more than rounding."""

    device: str = "auto"
    """auto (CUDA, then Apple's MPS, then CPU), cpu, cuda, cuda:1, mps."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the device has bf16 matrix units, else fp32. Weights stay fp32."""
    compile: Literal["off", "on", "auto"] = "off"
    """torch.compile for the model in training steps, which takes a minute or more before the first step.
    auto: on CUDA for runs of 5000 steps or more; on a CPU it gained nothing."""
    graphs: bool = True
    """On one CUDA device: record the training step as a CUDA graph, so that small batches do not wait for
    Python to launch kernels."""
    deterministic: bool = False
    """Use deterministic kernels only; slower on CUDA."""
    threads: Positive | None = None
    """CPU threads; PyTorch's choice when unset."""


class RunConfig(Section):
    """Everything a run depends on."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    """Seed of weights, batch order, noise and coins."""
    data: DataConfig = DataConfig()
    model: SerializeAsAny[BaseModel]
    train: TrainConfig = TrainConfig()
    kl: KLConfig = KLConfig()
    teacher_forcing: TeacherForcingConfig | None = None
    """Absent for models that predict all frames at once: it means nothing there."""
    optim: OptimConfig = OptimConfig()
    eval: EvalConfig = EvalConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.train.window <= self.data.n_past:
            raise ValueError(
                f"train.window ({self.train.window}) must be larger than data.n_past ({self.data.n_past})"
            )
        return self

    @property
    def model_name(self) -> str:
        """The model's name."""
        return str(getattr(self.model, "name"))  # noqa: B009  (a field of every model's own schema)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for YAML or JSON."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved config; ``config.load`` reads it back to an equal config."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)
