"""The pass of one token a row in one operation: the model's own pass, and when it serves."""

from __future__ import annotations

import copy

import pytest
import torch

import moeut
from moeut import token_pass
from moeut.ops import fewest_rows, native
from moeut.sampling import generate

needs_operations = pytest.mark.skipif(
    native.why_not() is not None, reason=f"no C++ operations: {native.why_not()}"
)
HEADS = {"kind": "switch_head", "num_heads": 3, "head_size": 11, "num_experts": 5, "top_k": 2}
EXPERTS = {"kind": "sigma_moe", "num_experts": 19, "expert_size": 35, "top_k": 4}
DENSE = {"kind": "dense", "hidden_size": 547}
# Odd sizes: no width is a multiple of 16, the feed-forward is wider than two strips of a weight.
MODELS = {
    "pre": {
        **{"name": "transformer", "d_model": 37, "depth": {"group": 2}, "feed_forward": DENSE},
        **{"attention": {"num_heads": 3, "head_size": 13}},
    },
    "grouped": {
        **{"name": "transformer", "d_model": 44, "depth": {"group": 2}, "norm": "peri"},
        **{"attention": {"num_heads": 4, "head_size": 18, "num_key_heads": 2, "bias": "all"}},
        **{"position": {"kind": "rotary", "fraction": 1.0, "pairs": True}, "tie_embeddings": True},
        **{"logit_scale": 0.5, "logit_cap": 3.0},
    },
    "moeut": {
        **{"name": "moeut", "d_model": 141, "depth": {"group": 2, "repeats": 3}},
        **{"attention": HEADS, "feed_forward": EXPERTS},
    },
    "mixed": {
        **{"name": "moeut", "d_model": 141, "depth": {"group": 1, "repeats": 2, "coda": 1}},
        **{"attention": {"kind": "dense", "num_heads": 3, "head_size": 11}, "norm": "pre"},
        **{"feed_forward": EXPERTS, "position": "none"},
    },
}
TOKENS = 20
"""More than a cache first has room for."""


def make(name):
    torch.manual_seed(0)
    config = {"form": "decoder_lm", "vocabulary_size": 83, **MODELS[name]}
    model = moeut.build(moeut.architecture(**config)).eval()
    with torch.no_grad():
        for one in model.parameters():  # norms and biases that do something
            if one.dim() == 1:
                one.add_(0.3 * torch.randn_like(one))
    return model


def why_not(model):
    return token_pass.why_not(model, model.decoder)


@torch.no_grad()
def decode(model, rows, *, quick, ragged=True, columns=TOKENS):
    """Read prompts, then tokens one by one: logits (T, rows, V), and the cache."""
    tokens = torch.randint(83, (32, columns), generator=torch.Generator().manual_seed(5))[:rows]
    lengths = torch.arange(rows) % 3 + 1 if ragged else torch.full((rows,), 3)
    cache = model.new_cache()
    model(tokens[:, :3], padding_mask=torch.arange(3) < lengths[:, None], cache=cache)
    logits = []
    for column in range(3, columns):
        if quick:
            with fewest_rows():
                logits.append(model(tokens[:, column : column + 1], cache=cache).logits[:, 0])
        else:
            logits.append(model(tokens[:, column : column + 1], cache=cache).logits[:, 0])
    return torch.stack(logits), cache


@needs_operations
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rows", [1, 3, 7, 17])
@pytest.mark.parametrize("is_rounded", [False, True])
def test_it_is_the_pass_of_the_model(name, rows, is_rounded):
    model = make(name)
    if is_rounded:  # read from copies in bfloat16
        token_pass.round_weights(model, "bfloat16")
    quick, cache = decode(model, rows, quick=True)
    assert isinstance(cache.token_pass, token_pass.TokenPass)
    plain, other = decode(model, rows, quick=False)
    assert other.token_pass is None
    exact, _ = decode(copy.deepcopy(model).double(), rows, quick=False)
    lost = float((plain - exact).abs().max())
    assert float((quick - exact).abs().max()) < 4 * lost + 1e-6
    for mine, theirs in zip(cache._keys + cache._values, other._keys + other._values, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@needs_operations
@pytest.mark.parametrize("name", MODELS)
def test_bits_depend_neither_on_threads_nor_on_other_rows(name):
    model = make(name)
    alone, _ = decode(model, 2, quick=True, ragged=False)
    together, _ = decode(model, 9, quick=True, ragged=False)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        shared, _ = decode(model, 9, quick=True, ragged=False)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(shared, together)
    # The prompt is the model's own pass, whose products of few rows differ by rounding.
    assert float((alone - together[:, :2]).abs().max()) < 1e-4


@needs_operations
def test_a_row_alone_has_the_bits_that_it_has_among_others():
    model = make("moeut")
    with torch.no_grad(), fewest_rows():
        cache = model.new_cache()
        model(torch.randint(83, (6, 4)), cache=cache)
        one = cache.select(torch.tensor([4]))
        tokens = torch.randint(83, (6, 1))
        for _ in range(3):
            among = model(tokens, cache=cache).logits[4]
            assert torch.equal(model(tokens[4:5], cache=one).logits[0], among)


@needs_operations
@pytest.mark.parametrize("is_rounded", [True, False])
@pytest.mark.parametrize("part", ["up", "down", "value", "output"])
def test_experts_that_bfloat16_holds_are_copied_and_others_read_where_they_lie(part, is_rounded):
    model = make("moeut")
    layer = model.decoder.layers[0]
    weight = getattr(layer.feed_forward if part in ("up", "down") else layer.attention, part)
    tokens = torch.randint(83, (2, 4))
    with torch.no_grad(), fewest_rows():
        token_pass.round_weights(model, "bfloat16" if is_rounded else "float32")
        cache, other = model.new_cache(), model.new_cache()
        for one in (cache, other):
            model(tokens, cache=one)
            model(tokens[:, :1], cache=one)  # lays the weights out
        expected = model(tokens[:, 1:2], cache=other).logits
        weight.mul_(2.0)
        found = model(tokens[:, 1:2], cache=cache).logits
    assert torch.equal(found, expected) == is_rounded


@needs_operations
@pytest.mark.parametrize("wrong", ["column", "layers", "values", "gate", "expert"])
def test_the_comparison_can_fail(wrong, monkeypatch):
    model = make("moeut")
    plain, _ = decode(model, 3, quick=False)
    operation = token_pass.TokenPass.__call__

    class Wrong:
        def __init__(self, operation):
            self.operation = operation

        def run(self, x, columns, layers, keys, values):
            if wrong == "column":
                columns = columns - 1
            if wrong == "layers":
                layers = layers[::-1]
            if wrong == "values":
                values = keys
            return self.operation.run(x, columns, layers, keys, values)

    def call(self, x, cache):
        if not isinstance(self.operation, Wrong):
            self.operation = Wrong(self.operation)
        return operation(self, x, cache)

    monkeypatch.setattr(token_pass.TokenPass, "__call__", call)
    changed = copy.deepcopy(model)
    block = changed.decoder.layers[0].feed_forward
    with torch.no_grad():
        if wrong == "gate":
            block.router.mul_(1.01)
        if wrong == "expert":
            block.down.copy_(block.down.roll(1, 0))
    quick, _ = decode(changed, 3, quick=True)
    assert float((quick - plain).abs().max()) > 1e-3


@needs_operations
def test_what_is_not_a_number_stays_so_behind_relu_and_choice():
    model = make("moeut")
    with torch.no_grad():
        model.embedding.weight[7] = torch.nan
        cache = model.new_cache()
        model(torch.tensor([[1, 2], [3, 4]]), cache=cache)
        with fewest_rows():
            logits = model(torch.tensor([[7], [5]]), cache=cache).logits
    assert bool(logits[0].isnan().all())
    assert bool(logits[1].isfinite().all())


@needs_operations
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"norm": "post"}, "its layers are no plain ones"),
        ({"norm_kind": "rms"}, "its layers are no plain ones"),
        ({"position": "relative"}, "its positions are not rotary"),
        ({"position": "sinusoidal"}, "something stands around its layers"),
        ({"attention": {"gates": "output"}}, "its layers are no plain ones"),
        ({"attention": {"qk_norm": "after"}}, "its layers are no plain ones"),
        ({"attention": {"value_head_size": 3}}, "its layers are no plain ones"),
        ({"feed_forward": {"activation": "gelu"}}, "its layers are no plain ones"),
        ({"embedding_size": 8}, "something stands around its layers"),
        ({"name": "universal", "halting": {"kind": "act"}}, "something else takes part"),
    ],
)
def test_other_models_read_by_themselves(changes, reason):
    torch.manual_seed(0)
    config = {"name": "transformer", "form": "decoder_lm", "vocabulary_size": 83, "d_model": 16}
    model = moeut.build(moeut.architecture(**(config | changes))).eval()
    said = why_not(model)
    assert said is not None
    assert said.startswith(reason)
    quick, cache = decode(model, 5, quick=True, columns=6)
    plain, _ = decode(model, 5, quick=False, columns=6)
    assert cache.token_pass is False
    torch.testing.assert_close(quick, plain, rtol=1e-5, atol=1e-5)  # one row is rounded otherwise


@needs_operations
def test_hooks_training_other_dtypes_and_gradients_are_respected():
    model = make("pre")
    assert why_not(model) is None
    assert why_not(model.train()) == "it is trained, or another kind of stack"
    assert why_not(model.eval().double()) == "its weights are not float32 on the CPU"
    handle = model.float().decoder.layers[0].register_forward_hook(lambda *_: None)
    assert why_not(model) == "hooks want to see its layers"
    handle.remove()
    with torch.autocast("cpu", torch.bfloat16):
        assert why_not(model) == "its weights are not float32 on the CPU"
    cache = model.new_cache()
    model(torch.ones(2, 3, dtype=torch.int64), cache=cache)
    with fewest_rows():
        logits = model(torch.ones(2, 1, dtype=torch.int64), cache=cache).logits
    assert logits.requires_grad
    assert cache.token_pass is None


@pytest.mark.parametrize("name", ["pre", "moeut"])
def test_without_a_compiler_the_model_reads_by_itself(name, monkeypatch):
    model, tokens = make(name), torch.randint(83, (2, 5))
    settings = {"max_tokens": 6, "temperature": 0.0}
    mask = torch.ones_like(tokens, dtype=torch.bool)
    written = generate(model, tokens, mask, **settings).tokens
    monkeypatch.setattr(native, "why_not", lambda: "a test does without")
    assert why_not(model) == "a test does without"
    assert torch.equal(generate(model, tokens, mask, **settings).tokens, written)


def test_only_matrices_are_rounded():
    model = make("moeut")
    before = {name: one.clone() for name, one in model.named_parameters()}
    token_pass.round_weights(model, "float32")
    assert all(torch.equal(one, before[name]) for name, one in model.named_parameters())
    token_pass.round_weights(model, "bfloat16")
    for name, one in model.named_parameters():
        rounded = before[name].to(torch.bfloat16).float()
        assert torch.equal(one, rounded if one.dim() > 1 else before[name]), name
        assert not torch.equal(rounded, before[name])
    with pytest.raises(ValueError, match="'float16': expected float32 or bfloat16"):
        token_pass.round_weights(model, "float16")
