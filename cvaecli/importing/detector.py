"""Finds people's keypoints with torchvision's Keypoint R-CNN."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import CvaeError, UserError
from ..media.panels import Frame
from .keypoints import Person
from .skeletons import COCO_17

if TYPE_CHECKING:
    from torch import Tensor, nn

PERSON_SCORE = 0.7
"""Figures that the detector is less sure of are left out."""
POINT_LOGIT = 2.0
"""The detector rates points with a heat map's logit; this one becomes a confidence of 0.5."""
BATCH = {"cpu": 1, "cuda": 8}
"""Pictures at once."""

Detect = Callable[[Sequence[Frame]], list[list[Person]]]


class Detector:
    """Keypoint R-CNN with a ResNet-50, trained on COCO: 17 points a person.

    Args:
        weights: file with its weights; None: torchvision downloads them once.
        device: ``cpu``, ``cuda``, ...; None: a GPU if there is one.

    Attributes:
        batch: pictures at once.
        seconds: the time that the last picture took, in seconds.

    Raises:
        UserError: the file does not hold these weights.
        CvaeError: the download failed.
    """

    names = COCO_17

    def __init__(self, weights: Path | None = None, device: str | None = None) -> None:
        import torch

        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = _model(weights).eval().to(self.device)
        self.batch = BATCH.get(self.device.type, 1)
        self.seconds = 0.0

    def __call__(self, pictures: Sequence[Frame]) -> list[list[Person]]:
        """The people in each picture, uint8 ``[H, W, 3]``, the surest first."""
        import torch

        start = time.perf_counter()
        with torch.inference_mode():
            tensors = [torch.tensor(picture).to(self.device) for picture in pictures]
            results = self.model([tensor.permute(2, 0, 1).float() / 255 for tensor in tensors])
        people = [_people(result) for result in results]
        self.seconds = (time.perf_counter() - start) / len(pictures)
        return people


def _model(weights: Path | None) -> nn.Module:
    import torch
    from torchvision.models.detection import KeypointRCNN_ResNet50_FPN_Weights, keypointrcnn_resnet50_fpn

    best = KeypointRCNN_ResNet50_FPN_Weights.DEFAULT
    if weights is None:
        try:
            content = best.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise CvaeError(
                f"the weights of Keypoint R-CNN cannot be downloaded ({error})",
                f"fetch {best.url} elsewhere and give it with --weights, or give keypoints with --labels",
            ) from None
    else:
        try:
            content = torch.load(weights, map_location="cpu", weights_only=True)
        except OSError as error:
            raise UserError(f"{weights}: cannot be read ({error.strerror})", "check the path") from None
        except Exception as error:  # torch.load raises many kinds on damaged files
            reason = str(error).partition("\n")[0][:80]
            raise UserError(f"{weights}: not a file of weights ({reason})", f"fetch {best.url}") from None
    model: nn.Module = keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    try:
        model.load_state_dict(content)
    except (RuntimeError, TypeError, AttributeError):
        where = weights or best.url
        raise UserError(
            f"{where}: not the weights of torchvision's Keypoint R-CNN", f"fetch {best.url}"
        ) from None
    return model


def _people(result: dict[str, Tensor]) -> list[Person]:
    """The figures of one picture from the detector's output."""
    sure = result["scores"] >= PERSON_SCORE
    places = result["keypoints"][sure].double().cpu().numpy()
    logits = result["keypoints_scores"][sure].double().cpu().numpy()
    confidence = 1 / (1 + np.exp(POINT_LOGIT - logits))
    points = np.concatenate([places[..., :2], confidence[..., None]], axis=-1)
    return [Person(str(i), figure) for i, figure in enumerate(points)]
