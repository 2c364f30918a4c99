import itertools

import pytest
import torch

from moeut.recurrence.cache import SharedSlots

ATTENTION = ["dense", "output_gate", "gates", "switch_head"]
NORM = ["pre", "post", "peri"]
POSITION = ["rotary", "relative", "absolute_gate", "sinusoidal", "learned", "none"]
LENGTHS = torch.tensor([7, 4, 1])  # of the prompts of three rows
STEPS = [1, 1, 3, 2, 12, 1]  # tokens of each later call; the store has to grow


def _evaluate(model, tokens, **options):
    """Return the logits of a decoder's tokens, whatever the form."""
    if hasattr(model, "encoder"):
        return model.decode(tokens, options.pop("memory"), **options).logits
    if "target_mask" in options:
        options["padding_mask"] = options.pop("target_mask")
    options.pop("memory", None)
    return model(tokens, **options).logits


def _inputs(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 11, (3, LENGTHS.max() + sum(STEPS)), generator=generator)
    if not hasattr(model, "encoder"):
        return tokens, {}
    source = torch.randint(0, 13, (3, 5), generator=generator)
    mask = torch.arange(5) < torch.tensor([5, 2, 3])[:, None]
    return tokens, {"memory": model.encode(source, source_mask=mask)}


def _ragged(model, tokens, memory, prefix_length=None):
    """Decode from prompts of different length, some tokens a call; compare columns by row."""
    cache = model.new_cache()
    width = int(LENGTHS.max())
    options = {} if prefix_length is None else {"prefix_length": prefix_length}
    mask = torch.arange(width) < LENGTHS[:, None]
    logits = _evaluate(model, tokens[:, :width], cache=cache, target_mask=mask, **memory, **options)
    rows = [[logits[row, :length]] for row, length in enumerate(LENGTHS)]
    position = LENGTHS.clone()
    for step in STEPS:
        new = torch.stack([t[p : p + step] for t, p in zip(tokens, position, strict=True)])
        logits = _evaluate(model, new, cache=cache, **memory)
        for row in range(3):
            rows[row].append(logits[row])
        position += step
    return [torch.cat(row) for row in rows]


@pytest.mark.parametrize("form", ["decoder_lm", "encoder_decoder"])
@pytest.mark.parametrize(
    ("attention", "norm", "position"),
    [
        *itertools.product(ATTENTION, NORM, POSITION),
        *itertools.product(["geometric"], NORM, ["sinusoidal", "none"]),
    ],
)
@torch.no_grad()
def test_decoding_with_a_cache_is_the_full_pass(make_model, form, attention, norm, position):
    model = make_model(form, attention=attention, norm=norm, position=position).eval()
    tokens, memory = _inputs(model)
    full = _evaluate(model, tokens, **memory)

    # One token at a time, from the first.
    cache = model.new_cache()
    steps = [_evaluate(model, tokens[:, i : i + 1], cache=cache, **memory) for i in range(10)]
    assert (torch.cat(steps, 1) - full[:, :10]).abs().max() < 1e-10
    # A prompt in one call, then the rest in one call.
    cache = model.new_cache()
    parts = [_evaluate(model, part, cache=cache, **memory) for part in tokens.split(9, dim=1)]
    assert (torch.cat(parts, 1) - full).abs().max() < 1e-10
    # Prompts of different length.
    for row, logits in enumerate(_ragged(model, tokens, memory)):
        assert (logits - full[row, : len(logits)]).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("attention", "position"), [("geometric", "none"), *(("switch_head", p) for p in POSITION)]
)
@torch.no_grad()
def test_a_bidirectional_prompt_decodes_as_the_full_pass(make_model, attention, position):
    model = make_model(attention=attention, position=position).eval()
    tokens, _ = _inputs(model)
    full = model(tokens, prefix_length=LENGTHS).logits
    for row, logits in enumerate(_ragged(model, tokens, {}, prefix_length=LENGTHS)):
        assert (logits - full[row, : len(logits)]).abs().max() < 1e-10
    assert (full - model(tokens).logits)[0, :6].abs().max() > 1e-3  # the prefix does something


@torch.no_grad()
def test_the_comparison_notices_a_shifted_position(make_model, monkeypatch):
    from moeut.recurrence import cache as module

    model = make_model(position="rotary").eval()
    tokens, _ = _inputs(model)
    full = model(tokens).logits

    def shifted(self, *args):
        window = module.StackCache._begin(self, *args)
        return window._replace(positions=window.positions + 1)

    monkeypatch.setattr(module.StackCache, "_begin", module.StackCache.begin, raising=False)
    cache = model.new_cache()
    first = model(tokens[:, :5], cache=cache).logits
    monkeypatch.setattr(module.StackCache, "begin", shifted)
    second = model(tokens[:, 5:6], cache=cache).logits
    assert (first - full[:, :5]).abs().max() < 1e-10
    assert (second - full[:, 5:6]).abs().max() > 1e-4


@pytest.mark.parametrize("schedule", ["cycle", "sequence"])
@pytest.mark.parametrize("form", ["decoder_lm", "encoder_decoder"])
@torch.no_grad()
def test_another_depth_needs_its_own_cache(make_model, form, schedule):
    model = make_model(form, order=schedule).eval()
    tokens, memory = _inputs(model)
    cache = model.new_cache(num_repeats=3)
    full = _evaluate(model, tokens[:, :8], num_repeats=3, **memory)
    parts = [
        _evaluate(model, part, num_repeats=3, cache=cache, **memory)
        for part in tokens[:, :8].split(3, dim=1)
    ]
    assert (torch.cat(parts, 1) - full).abs().max() < 1e-10
    with pytest.raises(ValueError, match=r"num_repeats=2: the cache was made for num_repeats=3"):
        _evaluate(model, tokens[:, 8:9], cache=cache, **memory)
    with pytest.raises(ValueError, match=r"num_repeats=4: the cache was made"):
        _evaluate(model, tokens[:, 8:9], num_repeats=4, cache=cache, **memory)


@pytest.mark.parametrize("form", ["decoder_lm", "encoder_decoder"])
@pytest.mark.parametrize("ragged", [False, True])
@torch.no_grad()
def test_rows_can_be_selected(make_model, form, ragged):
    model = make_model(form, position="relative").eval()
    tokens, memory = _inputs(model)
    full = _evaluate(model, tokens, **memory)
    cache = model.new_cache()
    mask = torch.arange(7) < LENGTHS[:, None] if ragged else None
    lengths = LENGTHS if ragged else torch.full((3,), 7)
    _evaluate(model, tokens[:, :7], cache=cache, target_mask=mask, **memory)
    rows = torch.tensor([2, 0])
    cache = cache.select(rows)
    memory = {name: encoded.select(rows) for name, encoded in memory.items()}
    for step in range(3):
        new = torch.stack([tokens[row, lengths[row] + step] for row in rows]).unsqueeze(1)
        logits = _evaluate(model, new, cache=cache, **memory)
        for place, row in enumerate(rows):
            assert (logits[place, 0] - full[row, lengths[row] + step]).abs().max() < 1e-10


@torch.no_grad()
def test_selected_rows_go_on_as_far_as_their_own_positions(make_model):
    model = make_model(position="learned").eval()  # 40 positions
    tokens = torch.randint(0, 11, (2, 40), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([39, 4])
    cache = model.new_cache()
    mask = torch.arange(39) < lengths[:, None]
    model(tokens[:, :39], padding_mask=mask, cache=cache)
    cache = cache.select(torch.tensor([1]))
    logits = model(tokens[1:, 4:], cache=cache).logits
    assert (logits - model(tokens[1:]).logits[:, 4:]).abs().max() < 1e-10


@torch.no_grad()
def test_cross_attention_reads_the_memory_once_per_layer(make_model, monkeypatch):
    model = make_model("encoder_decoder").eval()
    tokens, memory = _inputs(model)
    calls = []
    for index, layer in enumerate(model.decoder.layers):
        project = layer.project_memory
        monkeypatch.setattr(
            layer, "project_memory", lambda *a, i=index, p=project: (calls.append(i), p(*a))[1]
        )
    cache = model.new_cache()
    for column in range(3):
        model.decode(tokens[:, column : column + 1], cache=cache, **memory)
    assert calls == [0, 1]


def test_misuse_is_refused(make_model):
    model = make_model().eval()
    tokens, _ = _inputs(model)
    cache = model.new_cache()
    model(tokens[:, :3], cache=cache)
    with pytest.raises(ValueError, match="batch of 2 rows: the cache holds 3"):
        model(tokens[:2, 3:4], cache=cache)
    with pytest.raises(ValueError, match="prefix_length: give it with the first tokens"):
        model(tokens[:, 3:5], cache=cache, prefix_length=torch.ones(3, dtype=torch.int64))
    assert cache.lengths() == 3  # a refused call counts for nothing
    learned = make_model(position="learned").eval()
    cache = learned.new_cache()
    learned(torch.zeros(1, 40, dtype=torch.int64), cache=cache)
    with pytest.raises(ValueError, match="sequence length 41"):
        learned(torch.zeros(1, 1, dtype=torch.int64), cache=cache)


@torch.no_grad()
def test_stored_gradients_do_not_pile_up(make_model):
    model = make_model().eval()
    tokens, _ = _inputs(model)
    with torch.enable_grad():
        cache = model.new_cache()
        for column in range(3):
            out = model(tokens[:, column : column + 1], cache=cache)
    assert out.cache is cache
    assert not any(stored.requires_grad for stored in cache._keys + cache._values)


@torch.no_grad()
def test_applications_may_share_places_of_a_cache(make_recurrent):
    """As many places as applications is the whole pass; fewer, and tokens see later repeats."""
    model = make_recurrent("decoder_lm", "zero_add").eval()  # 1 + 2 × 4 + 1 applications
    tokens = torch.arange(7).unsqueeze(0)
    full = model(tokens).logits

    def decoded(shared):
        cache = model.new_cache(shared=shared)
        steps = [model(tokens[:, i : i + 1], cache=cache).logits for i in range(7)]
        return torch.cat(steps, 1), sum(key is not None for key in cache._keys)

    for shared, stored in ((SharedSlots(8), 10), (SharedSlots(1, in_runs=True), 10)):
        logits, count = decoded(shared)
        assert (logits - full).abs().max() < 1e-11
        assert count == stored
    for shared, stored in ((SharedSlots(2), 4), (SharedSlots(4, in_runs=True), 4)):
        logits, count = decoded(shared)
        assert count == stored
        assert (logits[:, 0] - full[:, 0]).abs().max() < 1e-11  # it sees itself alone
        assert (logits[:, 1:] - full[:, 1:]).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"shared\.size=0: must be at least 1"):
        model.new_cache(shared=SharedSlots(0))
