"""Initial weights follow the table: spread, shape of the distribution, and what is exact."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import pytest
import torch

from moeut import architecture
from moeut.initialization import initialize, keep_standard_deviation
from moeut.models import build
from moeut.options import OptionError

D, LAYERS, HEADS, HEAD, VOCABULARY = 64, 6, 4, 24, 300


def make(name: str, scheme: str, *, form: str = "decoder_lm", **options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"source_vocabulary_size": 200} if form == "encoder_decoder" else {}
    group = options.pop("group", {"moeut": 2}.get(name, LAYERS))
    heads = {"num_heads": HEADS, "head_size": HEAD}
    return build(
        architecture(
            name,
            form=form,
            vocabulary_size=VOCABULARY,
            d_model=D,
            depth={"group": group, "repeats": LAYERS // group},
            attention=heads | options.pop("attention", {}),
            initialization=scheme,
            **sizes,
            **options,
        )
    )


def moeut(*, renormalise_experts: bool = True, renormalise_router: bool = False, **options: Any):
    return make(
        "moeut",
        "moeut",
        attention={"num_experts": 5, "renormalise_experts": renormalise_experts},
        feed_forward={
            "num_experts": 12,
            "expert_size": 32,
            "renormalise_router": renormalise_router,
        },
        **options,
    )


def spread(tensor: torch.Tensor, deviation: float) -> None:
    """The standard deviation is the expected one, within five of its own standard errors."""
    error = 5 * deviation / math.sqrt(2 * tensor.numel())
    assert tensor.std().item() == pytest.approx(deviation, abs=error)
    assert tensor.mean().item() == pytest.approx(0.0, abs=5 * deviation / tensor.numel() ** 0.5)


def within(tensor: torch.Tensor, bound: float) -> None:
    """Uniform on ± the bound."""
    assert tensor.abs().max().item() <= bound
    assert tensor.abs().max().item() > 0.95 * bound
    spread(tensor, bound / math.sqrt(3))


def test_moeut_scheme_of_experts() -> None:
    weights = dict(moeut().named_parameters())
    scale = math.sqrt(2 / LAYERS)
    for g in range(2):
        layer = f"decoder.layers.{g}"
        for part in ("query.weight", "key.weight", "value", "value_router", "output_router"):
            spread(weights[f"{layer}.attention.{part}"], scale / math.sqrt(D))
        spread(weights[f"{layer}.attention.output"], scale / math.sqrt(HEADS * HEAD))
        spread(weights[f"{layer}.feed_forward.up"], scale / math.sqrt(D))
        spread(weights[f"{layer}.feed_forward.router"], scale / math.sqrt(D))
        # The fan-in is that of all experts, not of the active ones.
        spread(weights[f"{layer}.feed_forward.down"], scale / math.sqrt(12 * 32))
    spread(weights["embedding.weight"], 1 / math.sqrt(D))
    within(weights["head.weight"], 1 / math.sqrt(D))


def test_depth_counts_applied_layers_and_not_distinct_ones() -> None:
    one, three = (moeut(group=g).decoder.layers[0].feed_forward.up for g in (1, 3))
    spread(one, math.sqrt(2 / LAYERS / D))
    spread(three, math.sqrt(2 / LAYERS / D))


def test_router_rows_of_one_norm() -> None:
    plain = moeut().decoder.layers[0].feed_forward.router.norm(dim=1)
    equal = moeut(renormalise_router=True).decoder.layers[0].feed_forward.router.norm(dim=1)
    assert (plain.max() / plain.min()).item() > 1.05
    assert (equal.max() / equal.min()).item() == pytest.approx(1.0, abs=1e-5)


def test_attention_experts_of_equal_norm_over_experts() -> None:
    for part in ("value", "output"):
        drawn, equal = (
            getattr(moeut(renormalise_experts=on).decoder.layers[0].attention, part)
            for on in (False, True)
        )
        norms = equal.norm(dim=0)
        assert (norms.max() / norms.min()).item() == pytest.approx(1.0, abs=1e-4)
        norms = drawn.norm(dim=0)
        assert (norms.max() / norms.min()).item() > 1.5
        assert equal.std().item() == pytest.approx(drawn.std().item(), rel=1e-5)


def test_keeping_the_standard_deviation() -> None:
    weight = torch.randn(7, 30) * torch.arange(1, 8).unsqueeze(1)
    before = weight.std().item()
    keep_standard_deviation(weight, dim=1)
    assert weight.std().item() == pytest.approx(before, rel=1e-5)
    assert weight.norm(dim=1).std().item() < 1e-4


def test_gates_of_the_moeut_scheme() -> None:
    weights = dict(make("sigma_moe", "moeut").named_parameters())
    scale = math.sqrt(2 / LAYERS)
    for part in ("value_gate", "output_gate", "value.weight"):
        spread(weights[f"decoder.layers.0.attention.{part}"], scale / math.sqrt(D))
    spread(weights["decoder.layers.0.attention.output.weight"], scale / math.sqrt(HEADS * HEAD))


def test_depth_scaled_scheme_is_truncated_and_exact() -> None:
    weights = dict(
        make("transformer", "depth_scaled", feed_forward={"hidden_size": 96}).named_parameters()
    )
    fan_in = {"query": D, "key": D, "value": D, "output": HEADS * HEAD}
    for part, size in fan_in.items():
        weight = weights[f"decoder.layers.3.attention.{part}.weight"]
        deviation = math.sqrt(2 / (LAYERS * size))
        assert weight.std().item() == pytest.approx(deviation, rel=1e-5)
        # Cut at two standard deviations of the normal, which are 2.27 of what is left.
        assert weight.abs().max().item() < 2.35 * deviation
    for part, size in (("up", D), ("down", 96)):
        weight = weights[f"decoder.layers.3.feed_forward.{part}.weight"]
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (LAYERS * size)), rel=1e-5)
        assert weights[f"decoder.layers.3.feed_forward.{part}.bias"].abs().max() == 0


@pytest.mark.parametrize(
    ("scheme", "deviation"), [("normal", 1.0), ("kaiming", math.sqrt(2 / D)), ("glorot", None)]
)
def test_encoder_decoder_schemes(scheme: str, deviation: float | None) -> None:
    model = make("transformer", scheme, form="encoder_decoder", feed_forward={"hidden_size": 96})
    weights = dict(model.named_parameters())
    for name, rows in (("embedding", VOCABULARY), ("source_embedding", 200)):
        weight = weights[f"{name}.weight"]
        if deviation is None:
            within(weight, math.sqrt(6 / (rows + D)))
        else:
            spread(weight, deviation)
    size = HEADS * HEAD
    for block in ("attention", "cross_attention"):
        for part in ("query", "key", "value", "output"):
            within(weights[f"decoder.layers.1.{block}.{part}.weight"], math.sqrt(6 / (D + size)))
    up, down = (weights[f"encoder.layers.1.feed_forward.{part}.weight"] for part in ("up", "down"))
    within(up, math.sqrt(2) * math.sqrt(6 / (D + 96)))
    within(down, math.sqrt(6 / (D + 96)))
    assert weights["encoder.layers.1.feed_forward.up.bias"].abs().max() <= 1 / math.sqrt(D)
    within(weights["head.weight"], math.sqrt(6 / (VOCABULARY + D)))


DEEPNORM = {"norm": "post", "update": {"kind": "deepnorm"}}


def glorot_normal(weight: torch.Tensor, fans: tuple[int, int], gain: float) -> None:
    spread(weight, gain * math.sqrt(2.0 / sum(fans)))


def test_deepnorm_scales_what_a_sublayer_s_output_is_in_proportion_to() -> None:
    """By (8 L)^(-1/4), with L the applied layers; queries, keys, gates and routers have none."""
    beta, width, hidden = (8 * LAYERS) ** -0.25, HEADS * HEAD, 512
    model = make("transformer", "deepnorm", **DEEPNORM, attention={"gates": "value"})
    layer = model.decoder.layers[0]
    for name in ("query", "key"):
        glorot_normal(getattr(layer.attention, name).weight, (D, width), 1.0)
    for name in ("value", "output"):
        glorot_normal(getattr(layer.attention, name).weight, (D, width), beta)
    glorot_normal(layer.attention.value_gate, (D, HEADS), 1.0)
    glorot_normal(layer.feed_forward.up.weight, (D, hidden), beta)
    glorot_normal(layer.feed_forward.down.weight, (D, hidden), beta)
    assert not layer.feed_forward.up.bias.any()
    spread(model.embedding.weight, 1 / math.sqrt(D))
    with pytest.raises(AssertionError):  # a Glorot normal without the factor
        glorot_normal(layer.feed_forward.up.weight, (D, hidden), 1.0)


def test_deepnorm_counts_applied_layers_and_experts_as_one_matrix() -> None:
    experts = {"num_experts": 12, "expert_size": 32}
    model = make("moeut", "deepnorm", **DEEPNORM, feed_forward=experts)
    layer, beta = model.decoder.layers[1], (8 * LAYERS) ** -0.25
    glorot_normal(layer.feed_forward.up, (D, 12 * 32), beta)
    glorot_normal(layer.feed_forward.down, (D, 12 * 32), beta)
    glorot_normal(layer.feed_forward.router, (D, 12), 1.0)
    glorot_normal(layer.attention.value, (D, HEADS * HEAD), beta)
    glorot_normal(layer.attention.output, (D, HEADS * HEAD), beta)


def test_deepnorm_of_an_encoder_with_its_decoder() -> None:
    """N = 3 and M = 6: 0.81 (N⁴ M)^(1/16) and (3 M)^(1/4), 0.87 (N⁴ M)^(-1/16), (12 M)^(-1/4)."""
    pair = {"form": "encoder_decoder", "encoder_depth": {"group": 3, "repeats": 1}}
    model = make("transformer", "deepnorm", **DEEPNORM, **pair)
    scales = {"encoder": (1.192339, 0.591023), "decoder": (2.059767, 0.343295)}
    for stack, (alpha, beta) in scales.items():
        layer = getattr(model, stack).layers[0]
        assert layer.update.alpha == pytest.approx(alpha, rel=1e-5)
        glorot_normal(layer.feed_forward.up.weight, (D, 512), beta)
        glorot_normal(layer.attention.output.weight, (D, HEADS * HEAD), beta)
        glorot_normal(layer.attention.query.weight, (D, HEADS * HEAD), 1.0)
    glorot_normal(layer.cross_attention.value.weight, (D, HEADS * HEAD), beta)
    given = {"norm": "post", "update": {"kind": "deepnorm", "alpha": 1.5}}
    assert make("transformer", "deepnorm", **given, **pair).encoder.layers[0].update.alpha == 1.5
    plain = make("transformer", "normal", **DEEPNORM, **pair)
    assert plain.encoder.layers[0].update.alpha == pytest.approx(6**0.25)


def test_deepnorm_is_refused_without_its_update() -> None:
    said = "initialization='deepnorm': is what update.kind=deepnorm needs"
    with pytest.raises(OptionError, match=said):
        make("transformer", "deepnorm")


@pytest.mark.parametrize("scheme", ["moeut", "depth_scaled", "glorot", "normal", "kaiming"])
@pytest.mark.parametrize("tied", [False, True])
def test_what_every_scheme_shares(scheme: str, tied: bool) -> None:
    model = make("transformer", scheme, position="relative", tie_embeddings=tied)
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        if "norm." in name:
            assert torch.all(weight == (1.0 if name.endswith("weight") else 0.0)), name
        if name.endswith(("content_bias", "position_bias")):
            assert torch.all(weight == 0.0), name
        assert torch.isfinite(weight).all(), name
    if tied:
        assert torch.all(weights["head.bias"] == 0.0)
    else:
        assert 0 < weights["head.bias"].abs().max() <= 1 / math.sqrt(D)


def test_learned_positions_are_drawn_as_embeddings() -> None:
    spread(make("transformer", "moeut", position="learned").decoder.position.weight, D**-0.5)


def test_the_learned_logit_scale_starts_at_the_usual_one(make_config) -> None:
    model = build(make_config("encoder_classifier", position="learned_scale"))
    assert model.encoder.layers[0].attention.relative.scale.item() == pytest.approx(8**-0.5)


def test_initialising_again_draws_the_same_from_the_same_seed() -> None:
    model = moeut()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    torch.manual_seed(0)
    initialize(model, model.config)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    initialize(model, model.config)
    name = "decoder.layers.0.feed_forward.up"
    assert not torch.equal(dict(model.named_parameters())[name], before[name])


def test_fans_of_experts() -> None:
    layer = moeut().decoder.layers[0]
    roles = layer.attention.roles()
    expected = {
        "value": (D, HEADS * HEAD),
        "output": (HEADS * HEAD, D),
        "value_router": (D, HEADS * 5),
        "query.weight": (D, HEADS * HEAD),
    }
    for name, fans in expected.items():
        assert roles[name][1:3] == fans, name
    roles = layer.feed_forward.roles()
    expected = {"up": (D, 12 * 32), "down": (12 * 32, D), "router": (D, 12)}
    assert {name: role[1:3] for name, role in roles.items()} == expected


def test_a_parameter_without_a_role_is_named() -> None:
    model = moeut()
    model.decoder.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"parameter 'decoder\.extra\.weight' has no role"):
        initialize(model, model.config)


# SHA-256 of all initial weights in order, drawn from seed 3: a change of the draws, of their order
# or of their arithmetic is a change of every published number.
DRAWS = {
    "moeut": "cf1c82ba54c2e806",
    "depth_scaled": "d58f6b5c622ed732",
    "glorot": "2b534c2df9db383c",
    "normal": "9c8c079eadab711d",
    "kaiming": "90fa9077d54cadc7",
}


@pytest.mark.parametrize("scheme", ["moeut", "depth_scaled", "glorot", "normal", "kaiming"])
def test_initial_weights_are_bit_for_bit_those_of_before(scheme: str) -> None:
    digest = hashlib.sha256()
    for name, form, position in (
        ("moeut", "encoder_decoder", "relative"),
        ("sigma_moe", "decoder_lm", "learned"),
        ("universal", "encoder_classifier", "sinusoidal"),
    ):
        sizes = {
            "encoder_decoder": {"source_vocabulary_size": 9},
            "decoder_lm": {},
            "encoder_classifier": {"num_classes": 5},
        }[form]
        torch.manual_seed(3)
        config = architecture(
            name,
            form=form,
            vocabulary_size=11,
            d_model=16,
            attention={"num_heads": 2},
            position=position,
            initialization=scheme,
            **sizes,
        )
        for parameter in build(config).parameters():
            digest.update(parameter.detach().numpy().tobytes())
    assert digest.hexdigest()[:16] == DRAWS[scheme]
