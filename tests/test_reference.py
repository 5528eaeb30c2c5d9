"""The reference model and its autoregressive sister: protocol, sizes, what each looks at, and learning."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from unets import SMALL, H, K, W, build, run

from cvaecli.errors import UserError
from cvaecli.models.anchored import AnchoredCVAE
from cvaecli.models.label_features import GAIN, label_features, split_hues
from cvaecli.models.reference import ReferenceConfig, ReferenceCVAE
from cvaecli.models.unet_blocks import SelfAttention
from cvaecli.objective import kl_divergence, reconstruction

BOTH = pytest.mark.parametrize("kind", [ReferenceCVAE, AnchoredCVAE])


def inputs(batch: int = 2, height: int = H, width: int = W) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "past": torch.rand(batch, 1, 3, height, width),
        "past_condition": torch.rand(batch, 1, 3, height, width),
        "condition": torch.rand(batch, K, 3, height, width),
        "targets": torch.rand(batch, K, 3, height, width),
        "x_prev": torch.rand(batch, K, 3, height, width),
    }


@BOTH
@pytest.mark.parametrize("posterior", [False, True])
def test_all_steps_at_once_equal_one_after_the_other(kind: type[ReferenceCVAE], posterior: bool) -> None:
    model, data = build(kind), inputs()
    together, apart = run(model, data, posterior), run(model, data, posterior, loop=True)
    torch.testing.assert_close(together.x_hat, apart.x_hat, rtol=1e-5, atol=1e-6)
    for one, other in zip(together.q + together.p, apart.q + apart.p, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert len(together.q) == int(posterior)


def test_the_reference_model_never_looks_at_the_previous_frame_and_the_anchored_one_does() -> None:
    data = inputs()
    other = {**data, "x_prev": torch.rand_like(data["x_prev"])}
    reference, anchored = build(ReferenceCVAE), build(AnchoredCVAE)
    assert torch.equal(run(reference, data, False).x_hat, run(reference, other, False).x_hat)
    assert not torch.equal(run(anchored, data, False).x_hat, run(anchored, other, False).x_hat)
    assert reference.parallel and not anchored.parallel
    assert reference.sampling == anchored.sampling == "pairs"


@BOTH
def test_a_step_sees_its_own_label_alone(kind: type[ReferenceCVAE]) -> None:
    model, data = build(kind), inputs()
    edited = data["condition"].clone()
    edited[:, 2] = torch.rand_like(edited[:, 2])
    before, after = run(model, data, False).x_hat, run(model, {**data, "condition": edited}, False).x_hat
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.equal(before[:, 2], after[:, 2])


@BOTH
def test_one_row_equals_two(kind: type[ReferenceCVAE]) -> None:
    model, data = build(kind), inputs(2)
    state = model.start(data["past"], data["past_condition"])
    noise = [torch.randn(2, *s) for s in model.noise_shapes((H, W))]
    features = {k: v[:, 0] for k, v in model.encode(data["condition"]).items()}
    both, _ = model.step(state, data["x_prev"][:, 0], features, noise, False)
    alone, _ = model.step(
        tuple(s[:1] for s in state),
        data["x_prev"][:1, 0],
        {k: v[:1] for k, v in features.items()},
        [n[:1] for n in noise],
        False,
    )
    torch.testing.assert_close(both.x_hat[:1], alone.x_hat, rtol=1e-5, atol=1e-6)


@BOTH
@pytest.mark.parametrize("size", [(12, 20), (13, 22)])
def test_a_prediction_averaged_over_flips(kind: type[ReferenceCVAE], size: tuple[int, int]) -> None:
    plain, averaged, data = build(kind), build(kind), inputs(2, *size)
    averaged.average_over_flips()
    mirrored = {name: pictures.flip(-1) for name, pictures in data.items()}
    for model in (plain, averaged):
        torch.nn.init.zeros_(model.latent.weight)  # the noise is not mirrored
    both = run(plain, data, False).x_hat, run(plain, mirrored, False).x_hat.flip(-1)
    torch.testing.assert_close(run(averaged, data, False).x_hat, (both[0] + both[1]) / 2)


@BOTH
@pytest.mark.parametrize("posterior", [False, True])
def test_averaging_over_flips_changes_neither_the_latent_nor_training(
    kind: type[ReferenceCVAE], posterior: bool
) -> None:
    plain, averaged, data = build(kind), build(kind), inputs()
    averaged.average_over_flips()
    together, apart = run(averaged, data, posterior), run(averaged, data, posterior, loop=True)
    torch.testing.assert_close(together.x_hat, apart.x_hat, rtol=1e-5, atol=1e-6)
    expected = run(plain, data, posterior)
    for one, other in zip(together.p + together.q, expected.p + expected.q, strict=True):
        assert torch.equal(one.mu, other.mu) and torch.equal(one.logvar, other.logvar)
    learning = [run(model.train(), data, posterior).x_hat for model in (averaged, plain)]
    assert torch.equal(*learning)


@pytest.mark.parametrize("patch", [1, 2, 3])
@pytest.mark.parametrize("size", [(12, 20), (13, 22), (66, 64), (8, 8), (9, 31)])
def test_any_frame_size_and_patch(size: tuple[int, int], patch: int) -> None:
    model = build(patch=patch)
    step = run(model, inputs(1, *size), posterior=True)
    assert step.x_hat.shape == (1, K, 3, *size)
    assert step.q[0].mu.shape[2:] == model.noise_shapes(size)[0]
    assert float(step.x_hat.detach().min()) > 0 and float(step.x_hat.detach().max()) < 1


def test_the_gate_carries_the_reference_over() -> None:
    model, data = build(), inputs()
    with torch.no_grad():
        model.out.weight.zero_()
        model.out.bias.zero_()
        model.out.bias[3] = 20.0  # sigmoid(80): all of the reference
    x_hat = run(model, data, False).x_hat
    torch.testing.assert_close(x_hat, data["past"].expand_as(x_hat))


def test_the_standard_prior_is_standard_and_the_learned_one_reads_the_label() -> None:
    data = inputs()
    p = run(build(prior="standard"), data, False).p[0]
    assert not p.mu.any() and not p.logvar.any()
    learned = build(prior="learned")
    with torch.no_grad():
        learned.prior[-1].weight.normal_()  # type: ignore[index]
    other = {**data, "condition": 1 - data["condition"]}
    assert not torch.equal(run(learned, data, False).p[0].mu, run(learned, other, False).p[0].mu)


def test_the_posterior_sees_the_target_and_the_prior_does_not() -> None:
    model, data = build(), inputs()
    with torch.no_grad():
        model.posterior[-1].weight.normal_()  # type: ignore[union-attr]
    other = {**data, "targets": 1 - data["targets"]}
    one, two = run(model, data, True), run(model, other, True)
    assert not torch.equal(one.q[0].mu, two.q[0].mu)
    assert torch.equal(one.p[0].mu, two.p[0].mu)


@pytest.mark.parametrize("patch", [1, 2])
def test_the_shares_of_the_stem_add_up_to_it(patch: int) -> None:
    model, data = build(AnchoredCVAE, patch=patch), inputs(2, 8 * patch, 16 * patch)
    past, label = data["past"][:, 0], data["past_condition"][:, 0]
    target, x_prev = data["condition"][:, 0], data["x_prev"][:, 0]
    parts = past * 2 - 1, label_features(label), label_features(target), x_prev * 2 - 1
    _, seen = model.start(data["past"], data["past_condition"])
    seen_label = model.encode(data["condition"])["label"][:, 0]
    torch.testing.assert_close(
        model._add_previous(seen + seen_label, x_prev), model.stem(torch.cat(parts, 1))
    )


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_attention_at_the_coarsest_levels(levels: int) -> None:
    model = build(attention_levels=levels)
    cells: list[int] = []
    for part in model.modules():
        if isinstance(part, SelfAttention):
            part.register_forward_hook(lambda _, args, __: cells.append(args[0].shape[2] * args[0].shape[3]))
    run(model, inputs(1, 16, 16), False)
    assert cells == [[16], [64, 16, 64], [256, 64, 16, 64, 256]][levels - 1]


def test_every_pixel_of_a_patch_is_its_own() -> None:
    model, data = build(patch=2), inputs()
    with torch.no_grad():
        model.out.weight.zero_()
        model.out.bias.copy_(torch.linspace(-1, 1, 16))
        model.out.bias[-4:] = -20.0  # nothing of the reference
    cell = run(model, data, False).x_hat[0, 0, :, :2, :2]
    assert len(cell.unique()) == 12
    model.out.bias.data[-4] = 20.0  # all of it, in a patch's first pixel
    x_hat, past = run(model, data, False).x_hat, data["past"].expand(-1, K, -1, -1, -1)
    torch.testing.assert_close(x_hat[..., ::2, ::2], past[..., ::2, ::2])
    assert not torch.allclose(x_hat[..., 1::2, ::2], past[..., 1::2, ::2], atol=1e-3)


def test_label_features_are_maxima_and_a_mean_of_them() -> None:
    label = torch.rand(2, 3, 9, 13)
    near = F.max_pool2d(1 - label, 3, 1, 1)
    halo = F.avg_pool2d(F.max_pool2d(near, 5, 1, 2), 5, 1, 2)
    torch.testing.assert_close(label_features(label), torch.cat((1 - label, near, halo), 1))


@pytest.mark.parametrize("cells", [(3, 4), (20, 20)])
def test_attention_is_the_same_in_training(cells: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer, x = SelfAttention(64), torch.randn(2, 64, *cells)
    torch.nn.init.normal_(layer.out.weight, std=0.1)
    with torch.no_grad():
        alone = layer(x)
    torch.testing.assert_close(layer(x.requires_grad_()), alone)


@pytest.mark.parametrize("hues", [3, 6, 7, 12])
def test_each_hue_has_a_channel_of_its_own(hues: int) -> None:
    angle = torch.arange(hues) * 2 * torch.pi / hues  # the hues' own colours, strength 0.3, and no grey
    x, y = angle.cos() * 0.3, angle.sin() * 0.3
    red = x * 2 / 3
    green, blue = -x / 3 + y / 3**0.5, -x / 3 - y / 3**0.5
    ink = torch.stack((red, green, blue))
    ink = ink - ink.amin(0)
    found = split_hues(ink[None, :, None], hues)[0, :, 0]
    assert found.shape == (hues + 1, hues)
    torch.testing.assert_close(found[1:], 0.3 * GAIN * torch.eye(hues), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0], torch.zeros(hues))
    half = split_hues(ink[None, :, None] / 2, hues)[0, :, 0]
    torch.testing.assert_close(half, found / 2, atol=1e-5, rtol=0)


def test_grey_ink_has_no_hue_and_is_told_apart_from_colour() -> None:
    ink = torch.tensor([0.4, 0.4, 0.4])[None, :, None, None].expand(1, 3, 2, 2)
    found = split_hues(ink, 6)
    torch.testing.assert_close(found[:, 0], torch.full((1, 2, 2), 0.4 * GAIN))
    torch.testing.assert_close(found[:, 1:], torch.zeros(1, 6, 2, 2), atol=1e-6, rtol=0)
    tinted = ink.clone()
    tinted[:, 0] += 0.2
    more = split_hues(tinted, 6)
    torch.testing.assert_close(more[:, 0], found[:, 0])
    torch.testing.assert_close(more[:, 1], torch.full((1, 2, 2), 0.2 * GAIN))


@BOTH
def test_a_model_that_sees_hues(kind: type[ReferenceCVAE]) -> None:
    model, data = build(kind, label_hues=6), inputs()
    together, apart = run(model, data, True), run(model, data, True, loop=True)
    torch.testing.assert_close(together.x_hat, apart.x_hat, rtol=1e-5, atol=1e-6)
    assert model.stem.in_channels == 3 + 2 * 21 + model.previous_channels
    with pytest.raises(ValidationError, match="label_hues: must be 0, or 3 or more"):
        build(kind, label_hues=2)


def test_label_features_spread_thin_sticks() -> None:
    label = torch.ones(1, 3, 9, 9)
    label[0, 0, 4, 4] = 0.0  # one pixel of ink in the first channel
    ink, near, halo = label_features(label).chunk(3, 1)
    assert [int((part[0, 0] > 0).sum()) for part in (ink, near)] == [1, 9]
    assert int((halo[0, 0] > 0).sum()) > 25
    assert not (ink[0, 1].any() or near[0, 1].any() or halo[0, 1].any())


def test_bf16_runs_and_stays_near() -> None:
    model, data = build(), inputs()
    with torch.no_grad():
        exact = run(model, data, True)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = run(model, data, True)
    assert rounded.x_hat.dtype == rounded.q[0].mu.dtype == torch.float32
    assert float((exact.x_hat - rounded.x_hat).abs().max()) < 0.05


@pytest.mark.parametrize(("channels", "heads"), [(16, 1), (64, 2), (112, 2), (160, 5), (176, 4), (208, 4)])
def test_attention_with_any_width(channels: int, heads: int) -> None:
    attention = SelfAttention(channels)
    assert attention.heads == heads and attention(torch.randn(2, channels, 3, 4)).shape == (2, channels, 3, 4)


def test_mistakes_name_the_key() -> None:
    with pytest.raises(UserError, match="label_hues: the conditions are vectors"):
        ReferenceCVAE(ReferenceConfig(**SMALL, label_hues=8), (7,))
    with pytest.raises(UserError, match="average_flips: the conditions are vectors"):
        ReferenceCVAE(ReferenceConfig(**SMALL), (7,)).average_over_flips()
    with pytest.raises(ValidationError, match="multiples of 16"):
        ReferenceConfig(widths=[16, 24], encoder_blocks=[0, 0], decoder_blocks=[0])
    with pytest.raises(ValidationError, match="decoder_blocks"):
        ReferenceConfig(widths=[16, 32], encoder_blocks=[0, 0], decoder_blocks=[0, 1])
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        ReferenceConfig(widths=[16, 32], encoder_blocks=[0, 0], decoder_blocks=[-1])
    with pytest.raises(ValidationError, match="attention_levels: there are only 2 levels"):
        ReferenceConfig(widths=[16, 32], encoder_blocks=[0, 0], decoder_blocks=[0], attention_levels=3)


def test_a_pair_can_be_learned_by_heart() -> None:
    torch.manual_seed(0)
    model = ReferenceCVAE(ReferenceConfig(**SMALL), (3, H, W)).train()
    data = inputs(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    errors = []
    for _ in range(80):
        step = run(model, data, posterior=True)
        recon = reconstruction(step.x_hat, data["targets"]).mean()
        loss = recon + 1e-4 * kl_divergence(step.q[0], step.p[0]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(recon.detach()))
    assert errors[-1] < 0.5 * errors[0], (errors[0], errors[-1])
