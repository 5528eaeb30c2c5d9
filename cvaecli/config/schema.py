"""The schema of a run config: every key with its default and its meaning, except those of ``model``, which
are in the model's file.

Names in parentheses, such as (tfr), are those of the template of NYCU Deep Learning Lab 4, here called the
course.
"""

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
    """Expand ``~``, which no shell has done for a path in a file."""
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
    """Which clips, at which size. Defaults that depend on the kind are declared in data/kinds.py."""

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
    """Frames predicted in an evaluation; null: all frames of the clip (val_vi_len - n_past). Each kind has
    its own default."""
    cuts: Literal["auto", "none"] = "auto"
    """auto: find clip boundaries in the pictures. none: each folder is one clip. A clips.csv overrides
    both."""
    partial: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training frames used, from the start of the set (partial)."""
    train_frames: Annotated[int, Field(ge=2)] | None = None
    """Use only this many frames of every training clip, from its start; all when unset."""

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
    """Length of the training, and its batches."""

    init: UserPath | None = None
    """Weights to start from: a run's checkpoint, or a course checkpoint (.ckpt) for the pose model."""
    epochs: Positive = 50
    """Number of epochs. With steps_per_epoch it sets the length that every schedule refers to."""
    steps_per_epoch: Positive | None = None
    """Optimiser steps per epoch; one pass over the windows (or over the frames, for pairs) when unset."""
    max_steps: Positive | None = None
    """Stop after this many steps in total. Schedules do not depend on it."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Stop after this many minutes of training in total, including those before a resume. Schedules do not
    depend on it."""
    batch_size: Positive = 2
    """Windows (or pairs) per step, over all processes together."""
    accumulate: Positive = 1
    """Micro-batches that a process computes one after the other before the optimiser's step: less memory for
    the same step (but batch norm computes its statistics in each)."""
    window: Annotated[int, Field(ge=2)] = 16
    """Frames per training window, including the given ones (train_vi_len)."""
    stride: Positive | None = None
    """Distance between the starts of runs of consecutive frames; a run's length (no overlap) when unset."""
    sampling: Literal["windows", "pairs"] | None = None
    """windows: consecutive frames of a clip. pairs: the given frames come from anywhere in the clip and only
    the frames to predict are consecutive, so that copying the given frame does not pay and the model must
    use the label. When unset: windows for robots, whose objects stay where they were pushed to; for people
    the model's own choice (pairs for reference and anchored, windows for pose)."""
    shuffle: bool = True
    """Draw windows in random order with a random offset each epoch; the course template does neither. Without
    it, an epoch of steps_per_epoch continues where the last one stopped."""
    save_every: Annotated[int, Field(ge=0)] = 0
    """Epochs between numbered checkpoints; 0 keeps only last, previous and best."""
    save_minutes: Annotated[float, Field(gt=0)] = 5.0
    """Minutes between checkpoints to resume from within long epochs."""
    log_every: Positive = 10
    """Steps between two rows of steps.csv; losses are copied from the device only then."""
    tensorboard: bool = False
    """Also write the content of metrics.csv and steps.csv as TensorBoard files into RUN/tensorboard (needs
    the extra ``tensorboard``)."""
    recon: Literal["mse", "l1", "optimal_sigma"] = "mse"
    """Reconstruction term of a frame: mean squared error, mean absolute error, or the Gaussian
    likelihood at its optimal sigma, log of the mean squared error / 2 (Rybkin et al. 2021)."""
    prior_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each batch whose z is drawn from the prior, as in prediction, without a KL term. A model that
    always sees the target through the posterior in training relies on z too much (hybrid objective, Sohn et
    al. 2015). Rounded to whole rows of the batch. The other rows keep their ratio of reconstruction to KL."""
    time_reduction: Literal["sum", "mean"] = "sum"
    """Sum (as in the course) or mean of the steps' losses."""
    grad_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient over all parameters; a larger gradient is scaled down. null: no limit."""
    max_skips: Annotated[int, Field(ge=0)] = 10
    """A step whose loss or gradient is NaN or infinite is skipped: it changes nothing. After more than this
    many in the whole run, the training saves its last good state and stops. It also stops after an epoch
    without any finite step."""
    kept_steps: Positive | None = None
    """Activation checkpointing: only this many time steps at once keep their intermediate results in memory;
    all others are computed again in the backward pass. It costs about a third more time. All are kept when
    unset. Batch norm: pooled statistics are then those of this many steps, and svg's running statistics count
    the first frame of every forced group of steps twice."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights. The averaged weights are evaluated and saved."""
    fast_epochs: Annotated[int, Field(ge=0)] = 0
    """This many epochs at the start use only ``fast_partial`` of the training frames (fast_train_epoch)."""
    fast_partial: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Share of the training frames in those epochs, from the start of the set (fast_partial)."""
    interpolate_every: Annotated[int, Field(ge=0)] = 0
    """Epochs between two blends of the weights with the initial ones by their cosine similarity; 0: never."""
    augment: AugmentConfig = AugmentConfig()

    """Random changes of the training pictures."""

    @field_validator("augment", mode="before")
    @classmethod
    def _empty(cls, section: Any) -> Any:
        """A section whose keys are all commented out gets its defaults."""
        return {} if section is None else section

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.interpolate_every and self.ema is not None:
            raise ValueError(
                "interpolate_every: blends the weights, but train.ema evaluates their moving average;"
                " set only one of the two"
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
    """Length of a cycle (for monotonic: the ramp's length divided by ratio) in units; overrides cycles."""
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of a cycle spent on its ramp."""
    ramp: Literal["linear", "cosine", "sigmoid"] = "linear"
    """Shape of the ramp."""
    unit: Literal["step", "epoch"] = "step"
    """beta changes with every step, or stays the same for a whole epoch."""
    values: list[Annotated[float, Field(ge=0)]] | None = None
    """beta of each epoch for schedule ``values``."""
    repeat_from: Annotated[int, Field(ge=0)] | None = None
    """Index in ``values`` to start again from after the last one; when unset the last value is held."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Constant factor in addition to beta (SVG: 1e-4)."""
    reduction: Literal["sum", "mean", "pixel"] = "sum"
    """sum: nats per frame, over all latent dimensions (course). mean: nats per latent dimension. pixel: nats
    per frame divided by the number of pixel values C * H * W of a frame. The reconstruction term is per pixel
    too, so with pixel and weight 1 the loss is the negative evidence lower bound per pixel at every frame
    size: of a Gaussian decoder with optimal variance for recon optimal_sigma, of a Gaussian decoder with
    variance 1/2 for mse, of a Laplace decoder with scale 1 for l1."""
    free_bits: Annotated[float, Field(ge=0)] = 0.0
    """KL below this many nats per frame is not penalised (Kingma et al. 2016)."""

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
    """What a step is fed in training: the true previous frame (forced) or the model's own prediction."""

    ratio: Fraction = 0.0
    """Initial ratio (tfr)."""
    decay_start: Annotated[int, Field(ge=0)] = 0
    """First epoch with a lower ratio (tfr_sde); epoch 0 always has the initial one."""
    decay: Fraction = 0.0
    """Amount by which the ratio falls each time (tfr_d_step)."""
    every: Positive = 1
    """The ratio falls only at epochs that are multiples of this number."""
    floor: Fraction = 0.0
    """The ratio does not fall below this; a ratio that starts below it does not change."""
    coin: Literal["epoch", "batch", "step"] = "epoch"
    """The ratio is the chance of being forced, tossed once per epoch (as in the course), batch or time
    step."""
    mode: Literal["replace", "blend"] = "replace"
    """Forced steps are fed the true frame, or the blend ratio * true + (1 - ratio) * predicted."""
    detach: Literal["off", "on", "unforced"] = "off"
    """Stop gradients at the fed-back prediction: never, always, or only in steps that are not forced."""
    noise: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of normal noise added to the fed-back frame, in units of the data range 1."""
    rollout_starts: Fraction = 0.0
    """Share of windows whose first step is fed, instead of a true frame, the frame before from a free rollout
    of the training clips. The rollouts are made anew before each epoch but the first."""

    @field_validator("detach", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


class OptimConfig(Section):
    """Optimiser and learning-rate schedule."""

    name: Literal["adam", "adamw", "muon", "sgd"] = "adam"
    """Optimiser. muon: Muon for weights that are matrices of at least 32 rows and columns, as those of most
    convolutions are, AdamW for the others (Jordan et al. 2024)."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate (peak)."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay rates of the moment estimates of Adam and AdamW (with muon: of its AdamW)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD and Muon (for Muon 0.95 is usual)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay (decoupled for AdamW and Muon; with muon of the matrices only). Muon wants much more than
    AdamW: 2 in quickstart, where AdamW has 0.02."""
    schedule: Literal["constant", "multistep", "cosine", "polynomial"] = "multistep"
    """constant: lr throughout. multistep: times gamma at each milestone. cosine: from lr to min_lr over all
    steps. polynomial: the same as (1 - t) ** power, where t goes from 0 to 1; with Muon it is better than
    cosine if the weight decay is strong (10), worse if it is 2."""
    milestones: list[Annotated[int, Field(ge=0)]] = Field(default=[2, 5])
    """Epochs at which multistep lowers the rate."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of multistep at each milestone."""
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    """Final rate of cosine and polynomial."""
    power: Annotated[float, Field(gt=0)] = 2.0
    """Exponent of polynomial; 1 is a straight line."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up from 0, with any schedule."""


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
    average_flips: bool = False
    """Average each prediction with that of the mirrored pictures, which takes twice the time. For the models
    reference and anchored, trained with ``train.augment.flip``."""
    batch_size: Positive = 8
    """Clips that are rolled out together."""
    chunk: Positive = 64
    """Steps encoded together (in parallel models: predicted together). It affects memory, not results."""
    sample_strips: bool = True
    """Write a strip of truth, posterior reconstruction, rollout and label at every validation."""

    def scored(self) -> dict[str, Any]:
        """The keys that change a validation's numbers."""
        return self.model_dump(include={"frames", "clips", "samples", "prior", "average_flips"})


class RuntimeConfig(Section):
    """The machine. Nothing here changes results beyond rounding."""

    device: str = "auto"
    """auto (CUDA if there is one, else Apple's MPS, else CPU), cpu, cuda, cuda:1 or mps."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the device has bf16 matrix units, else fp32. Weights stay fp32. On CUDA fp32 does
    without TF32."""
    compile: Literal["off", "on", "auto"] = "off"
    """Use torch.compile in training, which takes a minute or more before the first step. auto: on CUDA, if
    the whole run has 5000 steps or more. On a CPU it gained nothing."""
    graphs: bool = False
    """With a single CUDA device: record the training step as a CUDA graph, so that small batches do not wait
    for Python to launch their kernels. It has not run on a GPU yet."""
    deterministic: bool = False
    """Use only deterministic kernels, which are slower on CUDA."""
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
    """None for models that predict all frames at once, where it has no meaning."""
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
