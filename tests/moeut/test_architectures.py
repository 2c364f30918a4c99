"""Named architectures: what they make of a section of a file, and what they refuse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import moeut
from moeut.architectures import ARCHITECTURES, architecture, blueprint, configure, preset
from moeut.blocks.attention import DenseAttention, GeometricAttention, SwitchHead
from moeut.blocks.feed_forward import DenseFeedForward, SigmaMoE
from moeut.blocks.positions import NoPosition, Relative, Rotary
from moeut.blocks.updates import CopyGate
from moeut.blocks.value_embeddings import ValueEmbeddings
from moeut.config import ModelConfig
from moeut.design import Blueprint
from moeut.options import OptionError
from moeut.recurrence.conditioning import Coordinates
from moeut.recurrence.exit_gate import ExitGate, Ponder
from moeut.recurrence.halting import AdaptiveComputationTime
from moeut.recurrence.injection import DiagonalInjection, LinearInjection
from moeut.recurrence.schedule import Depth
from moeut.recurrence.start import NoiseStart
from moeut.recurrence.state import State
from moeut.recurrence.stick_breaking import StickBreaking
from moeut.sizing import count_parameters

DOCUMENT = Path(__file__).parents[2] / "docs" / "architectures.md"
FORMS: dict[str, dict[str, Any]] = {
    "decoder_lm": {},
    "encoder_decoder": {"source_vocabulary_size": 9},
    "encoder_classifier": {"num_classes": 3},
}


HEADS: dict[str, Any] = {"head_size": 32, "num_key_heads": 4, "dropout": 0.0}
"""What is filled in of an attention with four heads at d_model=128."""
DENSE_HEADS = {**HEADS, "value_head_size": 32}


def language_model(name: str, **options: Any) -> ModelConfig:
    return architecture(name, form="decoder_lm", vocabulary_size=11, **options)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("form", FORMS)
def test_defaults_build_and_run_in_every_form(name: str, form: str) -> None:
    digits = {"digits": [3, 4], "source_digits": [5]}
    told = {"input_position": digits} if name == "abacus" else {}
    sizes = {"vocabulary_size": 11, "d_model": 32, **FORMS[form]}
    if name in ("trm", "hrm", "urm") and not form.startswith("encoder_c"):
        with pytest.raises(OptionError, match="writes token by token, but a whole answer"):
            architecture(name, form=form, **sizes)
        return
    config = architecture(name, form=form, **sizes, **told)
    model = moeut.build(config)
    tokens = torch.randint(9, (2, 6))
    output = model(tokens, tokens) if form == "encoder_decoder" else model(tokens)
    assert output.logits.shape == ((2, 3) if form == "encoder_classifier" else (2, 6, 11))
    assert torch.isfinite(output.logits).all()


def test_what_the_first_architectures_are() -> None:
    first = ("transformer", "universal", "moeut", "sigma_moe", "ndr", "ndr_gate")
    made = {name: blueprint({"architecture": name}) for name in first}
    assert {name: (one.depth.group, one.depth.repeats) for name, one in made.items()} == {
        "transformer": (4, 1),
        "universal": (1, 4),
        "moeut": (2, 2),
        "sigma_moe": (4, 1),
        "ndr": (1, 4),
        "ndr_gate": (1, 4),
    }
    dense, sparse = ("pre", "depth_scaled"), ("peri", "moeut")
    assert {name: (one.norm, one.initialization) for name, one in made.items()} == {
        "transformer": dense,
        "universal": dense,
        "moeut": sparse,
        "sigma_moe": sparse,
        "ndr": ("post", "normal"),
        "ndr_gate": ("post", "normal"),
    }
    assert made["moeut"].attention == SwitchHead(**HEADS)
    gated = DenseAttention(gates="value_and_output", **DENSE_HEADS)
    assert made["sigma_moe"].attention == gated
    assert made["transformer"].attention == DenseAttention(**DENSE_HEADS)
    assert made["universal"].feed_forward == DenseFeedForward(dropout=0.0)
    assert made["sigma_moe"].feed_forward == made["moeut"].feed_forward == SigmaMoE()
    assert made["moeut"].position == Rotary()
    assert made["ndr"].attention == GeometricAttention(**DENSE_HEADS)
    assert made["ndr"].position == NoPosition()
    assert made["ndr"].update == CopyGate(proposal="norm", initial_bias=-3.0, dropout=0.0)
    assert made["ndr_gate"].attention == DenseAttention(**DENSE_HEADS)
    assert made["ndr_gate"].position == Relative(learned_scale=True, absolute_gate=True)
    assert made["ndr_gate"].update == CopyGate(proposal="tanh", dropout=0.0)
    # Two and four times d_model.
    widths = [made[name].feed_forward.width for name in ("ndr", "ndr_gate")]
    assert widths == [256, 512]


def test_what_the_architectures_with_exits_are() -> None:
    sut = blueprint({"architecture": "sut"})
    assert sut.halting == StickBreaking(threshold=0.999, loss_weight=0.01)
    kinds = (sut.attention.kind, sut.feed_forward.kind, sut.position.kind)
    assert kinds == ("mixture_of_attention", "softmax_moe", "clipped")
    act = blueprint({"architecture": "universal_act"})
    assert act.halting == AdaptiveComputationTime(
        average="running", cost="ponder", initial_bias=1.0, halts_at_end=False
    )
    assert act.conditioning == Coordinates(positions=True, steps="sinusoid")
    assert act.position == NoPosition()
    ouro, ponder = (blueprint({"architecture": name}) for name in ("ouro", "ponder"))
    assert ouro.halting == ExitGate(loss="weighted", entropy_weight=0.05, threshold=1.0)
    assert (ouro.repeat_norm, ouro.final_norm) == (True, False)
    assert (ouro.norm, ouro.norm_kind, ouro.norm_epsilon) == ("branch", "rms", 1e-6)
    assert ouro.position == Rotary(fraction=1.0)
    assert ponder.halting == Ponder(prior=0.2, loss_weight=0.01, divergence="to_prior")
    assert (ponder.depth.group, ponder.depth.repeats) == (1, 8)


def test_what_the_architectures_with_a_core_between_prelude_and_coda_are() -> None:
    huginn, parcae, abacus = (
        blueprint({"architecture": name}) for name in ("huginn", "parcae", "abacus")
    )
    noise = NoiseStart(shape="like_init")
    assert huginn.state == State(start=noise, injection=LinearInjection(), output="final_norm")
    assert (huginn.norm, huginn.norm_kind, huginn.norm_epsilon) == ("sandwich", "rms", 1e-6)
    assert huginn.position == Rotary(pairs=True, base=50000.0, fraction=1.0)
    assert huginn.attention.bias == "query_key"
    diagonal = DiagonalInjection(decay=0.2**0.5)
    assert parcae.state == State(start=noise, injection=diagonal, norm_input=True, output="linear")
    assert parcae.value_embeddings == ValueEmbeddings(layers="alternate", channels=32)
    assert parcae.feed_forward.activation == "half_squared_relu"
    assert abacus.state.start == NoiseStart(deviation=0.02)
    assert abacus.state.output == "feed_forward"
    assert (abacus.depth.group, abacus.depth.repeats) == (1, 16)
    assert (abacus.position.kind, abacus.input_position.kind) == ("fire", "abacus")
    said = r"input_position\.digits=None: missing; expected the tokens of 0 to 9"
    with pytest.raises(OptionError, match=said):
        language_model("abacus")


def test_the_looped_architecture_is_what_the_published_code_is_read_as() -> None:
    from moeut.interop.looped import looped_length_config

    theirs = {"d_model": 32, "layers": 3, "heads": 8, "injection": True, "horizon": 5}
    sizes = {"d_model": 32, "depth": {"group": 3, "repeats": 5}, "attention": {"num_heads": 8}}
    made = language_model("looped", **sizes, feed_forward={"hidden_size": 4 * 32})
    published = looped_length_config(theirs, num_tokens=11)
    assert made == published
    assert made != looped_length_config(theirs | {"injection": False}, num_tokens=11)


def test_every_architecture_of_a_paper_has_its_five_lines() -> None:
    sections = DOCUMENT.read_text(encoding="utf-8").split("\n## ")
    said = {section.partition("\n")[0]: section for section in sections[1:]}
    for name in set(ARCHITECTURES) - {"transformer", "universal", "moeut", "sigma_moe"}:
        bullets = re.findall(r"^- \*\*(\w+)\*\*", said[name], flags=re.M)
        assert bullets[0] in ("Paper", "Code"), name
        assert bullets[1:] == ["Equation", "Config", "Differs", "Checked"], name
        for place in re.findall(r"`(tests/\S+\.py)`", said[name]):
            assert (DOCUMENT.parents[1] / place).is_file(), place


def test_what_is_said_is_merged_over_the_defaults() -> None:
    made = blueprint(
        {
            "architecture": "moeut",
            "d_model": 64,
            "depth": {"repeats": 9},
            "attention": {"num_experts": 6},
            "position": {"fraction": 1.0},
        }
    )
    assert made.depth == Depth(group=2, repeats=9)
    assert made.attention == SwitchHead(num_experts=6, **HEADS | {"head_size": 16})
    assert made.position == Rotary(fraction=1.0)
    assert made.norm == "peri"


def test_another_kind_drops_the_defaults_of_its_block() -> None:
    gated = blueprint({"architecture": "sigma_moe", "attention": {"num_heads": 2}})
    assert gated.attention.to_dict()["gates"] == "value_and_output"
    other = blueprint({"architecture": "sigma_moe", "attention": {"kind": "switch_head"}})
    assert other.attention == SwitchHead(**HEADS)
    assert blueprint({"architecture": "sigma_moe", "attention": "switch_head"}) == other
    same = blueprint({"architecture": "sigma_moe", "attention": "dense"})
    assert same.attention.to_dict()["gates"] == "value_and_output"
    assert blueprint({"architecture": "universal", "position": "relative"}).position == Relative()


def test_what_lies_deeper_is_merged_as_well() -> None:
    parcae = blueprint({"architecture": "parcae", "state": {"injection": {"decay": 0.5}}})
    assert (parcae.state.injection.kind, parcae.state.injection.decay) == ("diagonal", 0.5)
    assert (parcae.state.start.kind, parcae.state.start.shape) == ("noise", "like_init")
    louder = blueprint({"architecture": "parcae", "state": {"start": {"deviation": 2.0}}})
    assert (louder.state.start.shape, louder.state.start.deviation) == ("like_init", 2.0)
    other = blueprint({"architecture": "parcae", "state": {"injection": "gate", "start": "zero"}})
    assert (other.state.injection.kind, other.state.start.kind) == ("gate", "zero")
    relaxed = blueprint({"architecture": "relaxed_recursive", "own": {"adapters": {"rank": 4}}})
    assert relaxed.own.adapters.to_dict()["key"] is False
    assert relaxed.own.adapters.rank == 4
    with pytest.raises(OptionError, match="kind 'linear' takes bias") as caught:
        blueprint({"architecture": "huginn", "state": {"injection": {"decay": 0.5}}})
    assert caught.value.option == "state.injection.decay"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_blueprint_written_out_is_itself(name: str) -> None:
    for section in ({}, {"feed_forward": {"top_k": 20}} if "moe" in name else {}):
        section = {"architecture": name} | section
        made = blueprint(section, budgets=["parameters"])
        assert blueprint(section | made.to_dict(), budgets=["parameters"]) == made
        assert Blueprint.from_dict(made.to_dict()) == made


def test_a_blueprint_and_its_sizes_are_a_config() -> None:
    made = blueprint({"architecture": "universal"})
    config = configure(made, form="encoder_classifier", vocabulary_size=7, num_classes=3)
    expected = architecture(
        "universal", form="encoder_classifier", vocabulary_size=7, num_classes=3
    )
    assert config == expected
    assert (config.form, config.vocabulary_size, config.num_classes) == ("encoder_classifier", 7, 3)


def test_stacks_of_different_depth() -> None:
    sizes = {"vocabulary_size": 8, "source_vocabulary_size": 9}
    options = {"depth": {"repeats": 6}, "encoder_depth": {"repeats": 3}}
    made = architecture("moeut", form="encoder_decoder", **sizes, **options)
    depths = {name: stack.depth for name, stack in made.stacks.items()}
    assert depths == {"encoder": Depth(group=2, repeats=3), "decoder": Depth(group=2, repeats=6)}


def test_a_budget_sizes_the_feed_forward() -> None:
    dense = language_model("transformer", match_parameters=600_000)
    sparse = language_model("moeut", match_parameters=600_000)
    assert abs(count_parameters(dense) - 600_000) <= 257 * 4
    assert abs(count_parameters(sparse) - 600_000) <= 8320
    # More active experts than the default number of experts: what is sized needs no start value.
    wide = language_model("moeut", match_parameters=900_000, feed_forward={"top_k": 24})
    assert wide.feed_forward.to_dict()["num_experts"] > 24
    assert abs(count_parameters(wide) - 900_000) <= 8320


@pytest.mark.parametrize(
    ("options", "position"),
    [
        ({"initialization": "glorot", "embedding_scale": "sqrt_d_model"}, "sinusoidal"),
        ({"initialization": "normal"}, "sinusoidal"),
        ({"initialization": "kaiming"}, {"kind": "sinusoidal", "scale": "inverse_sqrt"}),
        ({"initialization": "glorot"}, "relative"),
    ],
)
@pytest.mark.parametrize("name", ["transformer", "universal"])
def test_published_encoder_decoders_can_be_written(
    name: str, options: dict[str, Any], position: Any
) -> None:
    """The SCAN models of arXiv 2108.12284, in their three embedding scalings and relative."""
    from moeut.interop.transformer_generalization import transformer_generalization_config

    sizes = {"vocabulary_size": 8, "source_vocabulary_size": 15}
    made = architecture(
        name,
        form="encoder_decoder",
        d_model=128,
        depth={"repeats": 3} if name == "universal" else {"group": 3},
        attention={"num_heads": 8},
        feed_forward={"hidden_size": 256},
        norm="post",
        position=position,
        dropout=0.1,
        tie_embeddings=True,
        **sizes,
        **options,
    )
    theirs = {
        "kaiming": "scaledinit",
        "normal": "noscale",
        "glorot": "relative" if position == "relative" else "opennmt",
    }[options["initialization"]]
    if name == "universal":
        theirs = "relative_universal" if theirs == "relative" else f"universal_{theirs}"
    published = transformer_generalization_config(
        {
            "transformer.variant": theirs,
            "state_size": 128,
            "transformer.n_heads": 8,
            "transformer.ff_multiplier": 2,
            "transformer.encoder_n_layers": 3,
            "transformer.tied_embedding": 1,
        },
        **sizes,
    )
    assert made == published


@pytest.mark.parametrize(
    ("section", "option", "expected"),
    [
        ({"architecture": "moeutt"}, "architecture", "expected one of .* did you mean 'moeut'"),
        ({}, "architecture", "missing .*expected one of transformer, universal"),
        ({"preset": "moeut-44"}, "preset", "expected one of .*did you mean 'moeut-44m'"),
        (
            {"preset": "moeut-44m", "architecture": "moeut"},
            "architecture",
            "either architecture or preset, which is 'moeut-44m'",
        ),
        ({"architecture": "moeut", "num_expert": 3}, "num_expert", "unknown; model takes"),
        (
            {"architecture": "transformer", "feed_forward": {"num_experts": 3}},
            "feed_forward.num_experts",
            "kind 'dense' takes hidden_size.*option of kind 'sigma_moe'",
        ),
        ({"preset": "universal-44m", "depth": {"repeats": 0}}, "depth.repeats", "at least 1"),
    ],
)
def test_wrong_sections_are_named(section: dict[str, Any], option: str, expected: str) -> None:
    with pytest.raises(OptionError, match=expected) as caught:
        blueprint(section)
    assert caught.value.option == option


@pytest.mark.parametrize(
    ("budget", "changes", "option", "expected"),
    [
        ("parameters", {"feed_forward": {"num_experts": 20}}, "feed_forward.num_experts",
         "has no effect with a budget of parameters"),
        ("parameters", {"feed_forward": "dens"}, "feed_forward.kind", "did you mean 'dense'"),
        ("parameters", {"feed_forward": {"top_k": 0}}, "feed_forward.top_k", "at least 1"),
        ("flops_per_token", {"feed_forward": {"top_k": 8}}, "feed_forward.top_k",
         "has no effect with a budget of flops_per_token"),
        ("flops_per_token", {"feed_forward": {"kind": "dense", "hidden_size": 9}},
         "feed_forward.hidden_size", "has no effect with a budget of flops_per_token"),
        ("cache_bytes_per_token", {"attention": {"head_size": 8}}, "attention.head_size",
         "has no effect with a budget of cache_bytes_per_token"),
    ],
)  # fmt: skip
def test_what_a_budget_sizes_is_not_given(budget, changes, option, expected) -> None:
    with pytest.raises(OptionError, match=expected) as caught:
        blueprint({"architecture": "moeut"} | changes, budgets=[budget])
    assert caught.value.option == option


def test_a_budget_below_the_smallest_model_is_refused() -> None:
    with pytest.raises(OptionError, match="match_parameters=5: the smallest feed-forward"):
        language_model("moeut", match_parameters=5)


def test_presets_are_changed_and_give_way_to_a_budget() -> None:
    grouped = preset("moeut-244m", depth={"group": 3, "repeats": 6}, match_parameters=243326784)
    assert grouped.depth == Depth(group=3, repeats=6)
    # Of two thirds of the experts a layer (258), some make room for the third layer's attention.
    assert grouped.feed_forward.to_dict()["num_experts"] == 243
    assert count_parameters(grouped) == pytest.approx(243326784, rel=0.002)
    narrow = preset("universal-44m", feed_forward={"hidden_size": 2053}, vocabulary_size=100)
    assert (narrow.feed_forward.to_dict()["hidden_size"], narrow.vocabulary_size) == (2053, 100)
    assert preset("moeut-44m").attention.to_dict()["renormalise_experts"] is False
