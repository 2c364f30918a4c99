"""Encoder-decoders of "The Devil is in the Detail" give the numbers that its code gives."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import moeut
from moeut.blocks.positions import Relative, added, relative
from moeut.config import ModelConfig
from moeut.decoding import greedy_decode
from moeut.interop import from_transformer_generalization, mapping
from moeut.interop.transformer_generalization import transformer_generalization_maps

pytestmark = pytest.mark.golden

FOLDERS = ("devil",)
LOGITS, GRADIENT = 1e-10, 1e-9


def imported(golden) -> Any:
    return from_transformer_generalization(golden.options, golden.part("param")).eval()


def tensor_maps(golden, config: ModelConfig) -> list[mapping.TensorMap]:
    return transformer_generalization_maps(
        config, universal="universal" in golden.options["transformer.variant"]
    )


def lengths_to_mask(length: torch.Tensor, columns: int) -> torch.Tensor:
    return torch.arange(columns) < length.unsqueeze(1)


def source_of(golden, tokens: torch.Tensor, length: torch.Tensor) -> tuple[Any, Any]:
    """SOS x EOS and its mask, the padding being zeros."""
    derived = golden.config["derived"]
    source = F.pad(tokens, (1, 1))
    source[:, 0] = derived["encoder_sos"]
    source.scatter_(1, length.unsqueeze(1) + 1, derived["encoder_eos"])
    return source, lengths_to_mask(length + 2, source.shape[1])


def batch(golden) -> dict[str, torch.Tensor]:
    t = golden.tensors
    boundary = golden.config["derived"]["decoder_sos_eos"]
    source, source_mask = source_of(golden, t["in"], t["in_len"])
    labels = F.pad(t["out"], (0, 1)).scatter(1, t["out_len"].unsqueeze(1), boundary)
    return {
        "source": source,
        "source_mask": source_mask,
        # A short row's end is embedded too, and the padding after it.
        "target": F.pad(labels[:, :-1], (1, 0), value=boundary),
        "labels": labels,
        "label_mask": lengths_to_mask(t["out_len"] + 1, labels.shape[1]),
    }


def run(golden, model, **options: Any) -> Any:
    # Columns beyond the end of a target are predicted too, so the target has no mask.
    inputs = batch(golden)
    return model(inputs["source"], inputs["target"], source_mask=inputs["source_mask"], **options)


def loss_of(logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return losses[mask.flatten()].sum() / mask.sum()


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.numel() == theirs.numel()
    return (ours.reshape(theirs.shape) - theirs).abs().max().item()


def test_logits_loss_and_gradients(golden) -> None:
    model, inputs = imported(golden), batch(golden)
    logits = run(golden, model).logits
    assert distance(logits, golden.tensors["logits"]) <= LOGITS
    loss = loss_of(logits, inputs["labels"], inputs["label_mask"])
    assert distance(loss, golden.tensors["loss"]) <= LOGITS
    without_end = lengths_to_mask(golden.tensors["out_len"], logits.shape[1])
    loss_without_end = loss_of(logits, inputs["labels"], without_end)
    assert distance(loss_without_end, golden.tensors["loss_without_eos"]) <= LOGITS
    loss.backward()
    assert set(golden.part("grad")) == set(golden.part("param"))
    expected = mapping.to_ours(tensor_maps(golden, model.config), golden.part("grad"))
    for name, parameter in model.named_parameters():
        assert distance(parameter.grad, expected.pop(name)) <= GRADIENT, name
    assert not expected


def test_state_after_each_layer(golden) -> None:
    hidden = run(golden, imported(golden), trace=True).hidden
    for stack, ours in (("enc", hidden["encoder"]), ("dec", hidden["decoder"])):
        expected = golden.part(f"hidden.{stack}")
        assert len(expected) == len(ours)
        for index, state in expected.items():
            assert distance(ours[int(index)], state) <= LOGITS, (stack, index)


def test_greedy_decoding(golden) -> None:
    """Theirs feeds the argmax back past the end; up to the end, ours is the same."""
    model, greedy = imported(golden), golden.part("greedy")
    steps, boundary = (
        golden.config["greedy"]["max_len"],
        golden.config["derived"]["decoder_sos_eos"],
    )
    assert steps == int(greedy["gold_out_len"].max()) + 1
    source, source_mask = source_of(golden, greedy["in"], greedy["in_len"])

    with torch.no_grad():
        memory = model.encode(source, source_mask=source_mask)
        cache = model.new_cache()
        token = torch.full((source.shape[0], 1), boundary)
        logits = []
        for _ in range(steps):
            logits.append(model.decode(token, memory, cache=cache).logits)
            token = logits[-1].argmax(dim=-1)
    every_step = torch.cat(logits, dim=1)
    assert distance(every_step, greedy["logits"]) <= LOGITS
    tokens = every_step.argmax(dim=-1)
    assert torch.equal(tokens, greedy["tokens"])

    decoded = greedy_decode(
        model, source, source_mask, bos=boundary, eos=boundary, pad=0, max_length=steps
    )
    assert torch.equal(decoded.lengths, greedy["out_lengths"])
    columns = decoded.tokens.shape[1]
    inside = lengths_to_mask(decoded.lengths, columns)
    assert torch.equal(decoded.tokens[inside], tokens[:, :columns][inside])
    assert torch.equal(decoded.finished, (tokens == boundary).any(dim=1))

    gold, gold_length = greedy["gold_out"], greedy["gold_out_len"]
    columns = gold.shape[1]
    right = tokens[:, :columns] == gold
    whole = (right | ~lengths_to_mask(gold_length, columns)).all(dim=1)
    assert torch.equal(whole & (decoded.lengths == gold_length), greedy["exact_match"])
    # Counts in the metadata: as far as both reach (at least one token), and with the end given.
    both = torch.minimum(decoded.lengths.clamp(min=1), gold_length)
    prefix = (right | ~lengths_to_mask(both, columns)).all(dim=1)
    assert int(prefix.sum()) == golden.config["greedy"]["n_prefix"]
    no_end = every_step.index_fill(-1, torch.tensor([boundary]), float("-inf")).argmax(dim=-1)
    oracle = ((no_end[:, :columns] == gold) | ~lengths_to_mask(gold_length, columns)).all(dim=1)
    assert int(oracle.sum()) == golden.config["greedy"]["n_oracle"]

    labels = F.pad(gold, (0, 1)).scatter(1, gold_length.unsqueeze(1), boundary)
    mask = lengths_to_mask(gold_length + 1, labels.shape[1])
    assert distance(loss_of(every_step, labels, mask), greedy["eval_loss"]) <= LOGITS


def test_every_element_is_imported_once(golden, assert_imported_once) -> None:
    model, theirs = imported(golden), golden.part("param")
    maps = tensor_maps(golden, model.config)
    assert_imported_once(model, maps, theirs)


def test_tables_in_the_state_dict_are_passed_over(golden) -> None:
    tables = golden.part("buffer") | {"int_seq": torch.arange(3)}
    parameters = golden.part("param") | tables
    model = from_transformer_generalization(golden.options, parameters)
    assert model.config == imported(golden).config


def test_every_tensor_is_needed_and_none_left_over(golden) -> None:
    parameters = golden.part("param")
    with pytest.raises(ValueError, match="not known: extra"):
        from_transformer_generalization(golden.options, parameters | {"extra": torch.zeros(1)})
    name = "output_map.bias"
    with pytest.raises(ValueError, match=f"missing: {name}"):
        from_transformer_generalization(
            golden.options, {n: t for n, t in parameters.items() if n != name}
        )


# --- comparisons can fail ---------------------------------------------------------------


def deviation(golden, config: ModelConfig, state: dict[str, torch.Tensor], **attributes) -> float:
    model = moeut.build(config).double().eval()
    model.load_state_dict(state)
    for name, value in attributes.items():
        setattr(model.decoder, name, value)
    with torch.no_grad():
        return distance(run(golden, model).logits, golden.tensors["logits"])


def original(golden) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    model = imported(golden)
    assert deviation(golden, model.config, model.state_dict()) <= LOGITS
    return model.config, model.state_dict()


def test_shifting_positions_is_seen(golden, monkeypatch: pytest.MonkeyPatch) -> None:
    config, state = original(golden)
    sinusoids = added.sinusoids

    def later(positions: torch.Tensor, *rest: Any, **scale: float) -> torch.Tensor:
        return sinusoids(positions + 1, *rest, **scale)

    for module in (added, relative):
        monkeypatch.setattr(module, "sinusoids", later)
    assert deviation(golden, config, state) > 1e-4


def test_dropping_the_causal_mask_is_seen(golden) -> None:
    config, state = original(golden)
    assert deviation(golden, config, state, causal=False) > 1e-4


def test_misplacing_a_norm_is_seen(golden) -> None:
    config, state = original(golden)
    moved = dataclasses.replace(config, norm="pre")
    assert deviation(golden, moved, state) > 1e-4


def test_another_embedding_scale_is_seen(golden) -> None:
    config, state = original(golden)
    other = "none" if config.embedding_scale != "none" else "sqrt_d_model"
    assert deviation(golden, dataclasses.replace(config, embedding_scale=other), state) > 1e-4


def test_swapping_heads_is_seen(golden) -> None:
    config, state = original(golden)
    name = "decoder.layers.0.attention.key.weight"
    rolled = state[name].roll(config.attention.head_size, dims=0)
    assert deviation(golden, config, state | {name: rolled}) > 1e-4
    if isinstance(config.position, Relative):
        name = "decoder.layers.0.attention.relative.position_bias"
        assert deviation(golden, config, state | {name: state[name].roll(1, dims=0)}) > 1e-4
