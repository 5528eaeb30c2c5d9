"""Small U-Net models, reference and anchored, for tests."""

from __future__ import annotations

from typing import Any

import torch

from cvaecli.models.anchored import AnchoredConfig, AnchoredCVAE
from cvaecli.models.reference import ReferenceConfig, ReferenceCVAE

SMALL: dict[str, Any] = {"widths": [16, 16, 32], "encoder_blocks": [0, 1, 1], "decoder_blocks": [1, 0]}
H, W, K = 12, 20, 3


def build(
    kind: type[ReferenceCVAE] = ReferenceCVAE, condition: tuple[int, ...] = (3, H, W), **changes: Any
) -> ReferenceCVAE:
    torch.manual_seed(0)
    config = (AnchoredConfig if kind is AnchoredCVAE else ReferenceConfig)(**{**SMALL, **changes})
    model = kind(config, condition)
    with torch.no_grad():  # blocks start as identities: give every weight a say
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def run(
    model: ReferenceCVAE, data: dict[str, torch.Tensor], posterior: bool = False, loop: bool = False
) -> Any:
    B, K = data["condition"].shape[:2]
    torch.manual_seed(2)
    noise = [torch.randn(B, K, *s) for s in model.noise_shapes(tuple(data["past"].shape[-2:]))]
    features = model.encode(data["condition"], data["targets"] if posterior else None)
    state = model.start(data["past"], data["past_condition"])
    unroll = super(ReferenceCVAE, model).unroll if loop else model.unroll
    return unroll(state, data["x_prev"], features, noise, posterior)[0]
