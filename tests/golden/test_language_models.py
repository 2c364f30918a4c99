"""Language models of the MoEUT release and training code give the numbers that those codes give."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import moeut
import moeut.blocks.attention.base
from moeut.blocks.attention import SwitchHead
from moeut.blocks.feed_forward import SigmaMoE, SoftmaxMoE
from moeut.blocks.positions import Rotary, RotaryTables, rotary_tables, rotate
from moeut.blocks.positions.clipped import Clipped
from moeut.config import ModelConfig
from moeut.interop import mapping
from moeut.interop.release import release_config, release_maps
from moeut.interop.training_code import (
    training_code_config,
    training_code_maps,
)

pytestmark = pytest.mark.golden

FOLDERS = ("moeut_release", "training_code")

COUNTERS = ("iter", "kv_sel_counts_100")


def is_release(golden) -> bool:
    return "transformer.variant" not in golden.options


def is_sparse_universal(golden) -> bool:
    return "sut" in golden.options.get("transformer.variant", "")


def weights(golden) -> dict[str, torch.Tensor]:
    """The floating-point parameters of a file, without the counters among them."""
    return {
        name: tensor for name, tensor in golden.part("param").items() if not name.endswith(COUNTERS)
    }


def imported(golden) -> tuple[Any, list[mapping.TensorMap]]:
    parameters = golden.part("param")
    if is_release(golden):
        model = moeut.from_release(golden.options, parameters)
        return model, release_maps(model.config)
    model = moeut.from_training_code(golden.options, parameters)
    return model, training_code_maps(model.config)


def bounds(golden) -> dict[str, float]:
    """The precision that a file allows: pure float64, or float64 with float32 roundings inside."""
    if golden.path.parent.name == "pure64":
        return {"logits": 1e-10, "loss": 1e-12, "gradient": 1e-9}
    return {"logits": 1e-6, "loss": 1e-6, "gradient": 1e-6}


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference; shapes may differ by axes of length one."""
    assert ours.numel() == theirs.numel()
    return (ours.reshape(theirs.shape) - theirs).abs().max().item()


def balance_loss(logits: torch.Tensor, coefficient: float) -> torch.Tensor:
    """The regulariser by its definition, from raw logits (B, R·T, H, E)."""
    mean = logits.log_softmax(dim=-1).logsumexp(dim=1) - torch.log(
        torch.tensor(float(logits.shape[1]), dtype=logits.dtype)
    )
    return coefficient * (mean.exp() * mean).sum(dim=-1).mean()


def run(golden, model) -> tuple[Any, torch.Tensor]:
    tokens = golden.tensors["tokens"]
    model.train()
    output = model(tokens[:, :-1])
    return output, F.cross_entropy(output.logits.flatten(0, 1), tokens[:, 1:].flatten())


def test_logits_losses_and_gradients(golden) -> None:
    model, maps = imported(golden)
    bound = bounds(golden)
    output, cross_entropy = run(golden, model)

    assert distance(output.logits, golden.tensors["logits"]) <= bound["logits"]
    assert distance(cross_entropy, golden.tensors["cross_entropy"]) <= bound["loss"]
    assert distance(output.auxiliary_loss, golden.tensors["reg_loss"]) <= bound["loss"]

    (cross_entropy + output.auxiliary_loss).backward()
    assert set(golden.part("grad")) == set(weights(golden))
    expected = mapping.to_ours(maps, golden.part("grad"))
    for name, parameter in model.named_parameters():
        assert distance(parameter.grad, expected.pop(name)) <= bound["gradient"], name
    assert not expected


def test_parts_of_the_balance_loss(golden) -> None:
    parts = golden.part("reg_loss")
    if not parts:
        assert is_release(golden) or golden.tensors["reg_loss"].abs().item() == 0.0
        return
    if is_sparse_universal(golden):
        return  # its parts are taken from their formulas in the tests of its blocks and halting
    model, _ = imported(golden)
    model.train()
    trace = model(golden.tensors["tokens"][:, :-1], trace=True).trace["decoder"]
    routers = {
        "moe": "feed_forward",
        "moe_att/v/entropy": "attention.value",
        "moe_att/o/entropy": "attention.output",
    }
    assert set(parts) <= set(routers)
    for part, router in routers.items():
        source = model.config.feed_forward if part == "moe" else model.config.attention
        total = torch.zeros((), dtype=torch.float64)
        for indices in layer_applications(model.config):
            logits = [
                trace[i].routers[router].logits for i in indices if router in trace[i].routers
            ]
            if logits:
                total += balance_loss(torch.cat(logits, dim=1), source.balance_loss)
        if part in parts:
            assert distance(total, parts[part]) <= bounds(golden)["loss"], part


def layer_applications(config: ModelConfig) -> Iterator[list[int]]:
    """For each distinct layer, the applications that are its own."""
    schedule = config.depth.schedule()
    for layer in range(config.depth.num_distinct):
        yield [index for index, applied in enumerate(schedule) if applied == layer]


def test_state_after_each_layer(golden) -> None:
    expected = golden.part("layer_out")
    if is_sparse_universal(golden):  # its layer_out is what has been accumulated
        states = {name: t for name, t in golden.part("act").items() if name.endswith("curr_h")}
        expected = {name.partition(".")[0]: state for name, state in states.items()}
        assert expected or golden.path.parent.name == "pure64"
    model, _ = imported(golden)
    hidden = model(golden.tensors["tokens"][:, :-1], trace=True).hidden["decoder"]
    assert len(hidden) == model.config.depth.num_applications + 1
    for index, state in expected.items():
        assert distance(hidden[int(index) + 1], state) <= bounds(golden)["logits"], index


def test_every_element_is_imported_once(golden, assert_imported_once) -> None:
    model, maps = imported(golden)
    theirs = weights(golden)
    assert_imported_once(model, maps, theirs)


def test_every_tensor_is_needed_and_none_left_over(golden) -> None:
    importer = moeut.from_release if is_release(golden) else moeut.from_training_code
    parameters = dict(golden.part("param"))
    with pytest.raises(ValueError, match=r"not known: decoder\.extra"):
        importer(golden.options, parameters | {"decoder.extra": torch.zeros(1)})
    name, _ = max(weights(golden).items(), key=lambda item: item[1].numel())
    with pytest.raises(ValueError, match=f"missing: {name}"):
        importer(golden.options, {n: t for n, t in parameters.items() if n != name})
    with pytest.raises(ValueError, match="shape"):
        importer(golden.options, parameters | {name: torch.zeros(3)})


# --- comparisons can fail ---------------------------------------------------------------


def deviation(golden, config: ModelConfig, state: dict[str, torch.Tensor], *, causal=True) -> float:
    """How far a model of ours with these weights is from the golden logits."""
    model = moeut.build(config).double()
    model.load_state_dict(state)
    model.decoder.causal = causal
    output, _ = run(golden, model)
    return distance(output.logits, golden.tensors["logits"])


def original(golden) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    model, _ = imported(golden)
    config, state = model.config, model.state_dict()
    assert deviation(golden, config, state) <= bounds(golden)["logits"]
    return config, state


EXPERT_WEIGHTS = {
    "feed_forward": ("up", "down", "router"),
    "attention.value": ("value", "value_router"),
    "attention.output": ("output", "output_router"),
}
COMPETING_WEIGHTS = {
    "feed_forward": ("up", "up_bias", "down", "down_bias", "router.output.weight"),
    "attention.output": ("query", "output", "router.output.weight"),
}


def test_swapping_two_experts_is_seen(golden) -> None:
    config, state = original(golden)
    model, _ = imported(golden)
    routers = model(golden.tensors["tokens"][:, :-1], trace=True).trace["decoder"][0].routers
    has_experts = isinstance(config.feed_forward, SigmaMoE | SoftmaxMoE)
    assert has_experts == ("feed_forward" in routers)
    assert isinstance(config.attention, SwitchHead) == ("attention.value" in routers)
    for name, router in routers.items():
        # Of the first head, the two experts that are chosen most: others may not be used at all.
        chosen = router.selection[:, :, 0].flatten()
        counts = chosen.bincount(minlength=router.logits.shape[-1])
        first, second = counts.topk(2).indices.tolist()
        competing = is_sparse_universal(golden)
        for part in (COMPETING_WEIGHTS if competing else EXPERT_WEIGHTS)[name]:
            key = f"decoder.layers.0.{name.split('.')[0]}.{part}"
            swapped = state[key].clone()
            swapped[[first, second]] = state[key][[second, first]]
            assert deviation(golden, config, state | {key: swapped}) > 1e-4, key


def test_shifting_positions_is_seen(golden, monkeypatch: pytest.MonkeyPatch) -> None:
    config, state = original(golden)
    if isinstance(config.position, Clipped):
        key = "decoder.layers.0.attention.relative.weight"
        assert deviation(golden, config, state | {key: state[key].roll(1, -1)}) > 1e-4
        return
    assert isinstance(config.position, Rotary)

    def shifted(x: torch.Tensor, tables: RotaryTables) -> torch.Tensor:
        """Queries one position later than keys: all positions shifted alike change nothing."""
        one = rotary_tables(torch.ones(1), config.position, config.attention.head_size, x.dtype)
        query, key = rotate(x, tables).chunk(2, dim=1)
        return torch.cat((rotate(query, one), key), dim=1)

    monkeypatch.setattr(moeut.blocks.attention.base, "rotate", shifted)
    assert deviation(golden, config, state) > 1e-4


def test_misplacing_a_norm_is_seen(golden) -> None:
    config, state = original(golden)
    placements = {"pre", "post"} if config.norm != "post" else {"pre"}
    if isinstance(config.feed_forward, SigmaMoE):
        placements.add("peri")
    for norm in placements - {config.norm}:
        assert deviation(golden, dataclasses.replace(config, norm=norm), state) > 1e-4, norm


def test_dropping_the_causal_mask_is_seen(golden) -> None:
    config, state = original(golden)
    assert deviation(golden, config, state, causal=False) > 1e-4


def test_swapping_the_schedule_is_seen(golden) -> None:
    config, state = original(golden)
    depth = config.depth
    other = "sequence" if depth.order == "cycle" else "cycle"
    if depth.group == 1 or not depth.is_shared:
        with pytest.raises(moeut.OptionError, match="order='sequence': has no effect"):
            dataclasses.replace(depth, order=other)
        if not is_release(golden):  # the code's options may say it, and mean nothing by it
            options = golden.options | {"transformer.universal.group_type": "aabb"}
            read = training_code_config(options, vocabulary_size=config.vocabulary_size)
            assert read == config
        return
    moved = dataclasses.replace(config, depth=dataclasses.replace(depth, order=other))
    assert deviation(golden, moved, state) > 1e-4


# --- options ----------------------------------------------------------------------------


def test_raw_strings_are_read_as_numbers_are(golden) -> None:
    options = {name: _as_text(value) for name, value in golden.options.items()}
    vocabulary_size = golden.part("param")["embedding.weight"].shape[0]
    if is_release(golden):
        assert release_config(options) == release_config(golden.options)
    else:
        read = training_code_config(golden.options, vocabulary_size=vocabulary_size)
        assert training_code_config(options, vocabulary_size=vocabulary_size) == read


def _as_text(value: Any) -> Any:
    if isinstance(value, bool):
        return str(int(value))
    if value is None:
        return "none"
    return value if isinstance(value, dict | list) else str(value)


def test_another_halting_is_seen(golden) -> None:
    config, state = original(golden)
    if is_sparse_universal(golden):
        halting = dataclasses.replace(config.halting, threshold=0.99)
        assert deviation(golden, dataclasses.replace(config, halting=halting), state) > 1e-5
