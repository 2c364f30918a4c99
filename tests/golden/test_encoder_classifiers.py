"""Encoder classifiers of the Neural Data Router's code give the numbers that it gives."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import moeut
from moeut.blocks.attention import GeometricAttention, geometric
from moeut.blocks.positions import added, relative
from moeut.blocks.updates import CopyGate
from moeut.config import ModelConfig
from moeut.interop import from_ndr, mapping
from moeut.interop.ndr import ndr_maps

pytestmark = pytest.mark.golden

FOLDERS = ("ndr",)
LOGITS, GRADIENT = 1e-10, 1e-9
SINUSOIDS = added.sinusoids
NEAREST_FIRST = geometric._nearest_first


def imported(golden) -> Any:
    model = from_ndr(golden.options, golden.part("param"))
    if golden.config["derived"]["act_accumulator_dtype"] == "float64":
        # The code itself sums in float32; these files are of a copy that does not.
        exact = dataclasses.replace(model.config.halting, accumulator="exact")
        return rebuilt(dataclasses.replace(model.config, halting=exact), model.state_dict())
    return model.eval()


def rebuilt(config: ModelConfig, state: dict[str, torch.Tensor]) -> Any:
    model = moeut.build(config).double().eval()
    model.load_state_dict(state)
    return model


def tensor_maps(golden, config: ModelConfig) -> list[mapping.TensorMap]:
    return ndr_maps(config, variant=golden.options["transformer.variant"])


def run(golden, model, **options: Any) -> Any:
    """Classify SOS x EOS, the padding being zeros."""
    derived, length = golden.config["derived"], golden.tensors["in_len"]
    source = F.pad(golden.tensors["in"], (1, 1))
    source[:, 0] = derived["encoder_sos"]
    source.scatter_(1, length.unsqueeze(1) + 1, derived["encoder_eos"])
    mask = torch.arange(source.shape[1]) < length.unsqueeze(1) + 2
    return model(source, source_mask=mask, **options)


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.numel() == theirs.numel()
    return (ours.reshape(theirs.shape) - theirs).abs().max().item()


def test_logits_losses_and_gradients(golden) -> None:
    model = imported(golden).train()  # without any dropout; in evaluation there is no loss
    output = run(golden, model)
    t = golden.tensors
    assert distance(output.logits, t["logits"]) <= LOGITS
    loss = F.cross_entropy(output.logits, t["out"])
    assert distance(loss, t["loss"]) <= LOGITS
    assert distance(output.auxiliary_loss, t["reg_loss"]) <= LOGITS
    total = loss + output.auxiliary_loss
    assert distance(total, t["total_loss"]) <= LOGITS
    total.backward()
    theirs = dict(golden.part("grad"))
    for name in golden.config["params_without_gradient"]:
        assert theirs.pop(name, torch.zeros(1)).abs().max() == 0.0, name
    expected = mapping.to_ours(tensor_maps(golden, model.config), theirs)
    for name, parameter in model.named_parameters():
        assert distance(parameter.grad, expected.pop(name)) <= GRADIENT, name
    assert not expected


def test_logits_at_the_other_column(golden) -> None:
    read = golden.options["transformer_classifier.result_column"]
    other = {"first": "last", "last": "first"}[read]
    wanted = golden.tensors.get(f"logits_column_{other}")
    if wanted is None:
        return
    model = imported(golden)
    reader = rebuilt(dataclasses.replace(model.config, pooling=other), model.state_dict())
    assert distance(run(golden, reader).logits, wanted) <= LOGITS


def test_steps_until_a_row_has_halted(golden) -> None:
    wanted = golden.tensors.get("act.max_updates_per_sample")
    if wanted is None:
        return
    decisions = run(golden, imported(golden)).decisions["encoder"]
    assert torch.equal(decisions["halting.repeats"].amax(1), wanted.flatten().double())


def test_logits_at_a_greater_depth(golden) -> None:
    deeper = golden.tensors.get("logits_eval_n_test_layers_plus2")
    if deeper is None:
        assert golden.options["transformer.variant"] != "ndr_geometric"
        return
    model = imported(golden)
    repeats = model.config.depth.repeats
    assert distance(run(golden, model, num_repeats=repeats + 2).logits, deeper) <= LOGITS
    assert distance(run(golden, model, num_repeats=repeats + 1).logits, deeper) > 1e-4


def test_state_after_each_layer(golden) -> None:
    hidden = run(golden, imported(golden), trace=True).hidden["encoder"]
    expected = golden.part("hidden")
    assert len(hidden) == len(expected)
    for index, state in expected.items():
        assert distance(hidden[int(index)], state) <= LOGITS, index


def test_every_element_is_imported_once(golden, assert_imported_once) -> None:
    model = imported(golden)
    maps = tensor_maps(golden, model.config)
    unused = golden.config["params_without_gradient"]
    theirs = {n: t for n, t in golden.part("param").items() if n not in unused}
    assert_imported_once(model, maps, theirs)


def test_every_tensor_is_needed_and_none_left_over(golden) -> None:
    parameters = golden.part("param")
    with pytest.raises(ValueError, match="not known: extra"):
        from_ndr(golden.options, parameters | {"extra": torch.zeros(1)})
    name = "output_map.bias"
    with pytest.raises(ValueError, match=f"missing: {name}"):
        from_ndr(golden.options, {n: t for n, t in parameters.items() if n != name})


# --- comparisons can fail ---------------------------------------------------------------


def deviation(golden, config: ModelConfig, state: dict[str, torch.Tensor]) -> float:
    with torch.no_grad():
        return distance(run(golden, rebuilt(config, state)).logits, golden.tensors["logits"])


def original(golden) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    model = imported(golden)
    assert deviation(golden, model.config, model.state_dict()) <= LOGITS
    return model.config, model.state_dict()


def test_shifting_positions_is_seen(golden, monkeypatch: pytest.MonkeyPatch) -> None:
    config, state = original(golden)
    if isinstance(config.attention, GeometricAttention):
        monkeypatch.setattr(geometric, "_nearest_first", left_first)
    else:
        for module in (added, relative):
            monkeypatch.setattr(module, "sinusoids", one_later)
    assert deviation(golden, config, state) > 1e-4


def one_later(positions: torch.Tensor, *rest: Any, **scale: float) -> torch.Tensor:
    return SINUSOIDS(positions + 1, *rest, **scale)


def left_first(offset: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the order of keys if the left one came first at equal distance."""
    order, rank = NEAREST_FIRST(-offset.flip(-1))
    return offset.shape[-1] - 1 - order, rank.flip(-1)


def test_seeing_oneself_is_seen(golden, monkeypatch: pytest.MonkeyPatch) -> None:
    config, state = original(golden)
    if not isinstance(config.attention, GeometricAttention):
        return
    weights = geometric.geometric_weights

    def with_diagonal(logits: torch.Tensor, allowed: torch.Tensor, *rest: Any, **options: bool):
        oneself = torch.eye(allowed.shape[-1], dtype=torch.bool)
        return weights(logits, allowed | oneself, *rest, **options)

    monkeypatch.setattr(geometric, "geometric_weights", with_diagonal)
    assert deviation(golden, config, state) > 1e-4


def test_misplacing_a_norm_is_seen(golden) -> None:
    config, state = original(golden)
    if isinstance(config.update, CopyGate):
        # Without its norm, or with one more, a layer has other parameters: let the proposal differ.
        other = "tanh" if config.update.proposal == "norm" else "norm"
        moved = dataclasses.replace(
            config, update=dataclasses.replace(config.update, proposal=other)
        )
        names = [f"encoder.layers.0.update.norm.{part}" for part in ("weight", "bias")]
        state = {name: state[name] for name in state if name not in names}
        if other == "norm":
            state |= {name: torch.full((config.d_model,), 0.9).double() for name in names}
    else:
        moved = dataclasses.replace(config, norm="pre")
    assert deviation(golden, moved, state) > 1e-4


def test_reading_another_column_is_seen(golden) -> None:
    config, state = original(golden)
    other = "last" if config.pooling == "first" else "first"
    assert deviation(golden, dataclasses.replace(config, pooling=other), state) > 1e-4
