import dataclasses

import pytest
import torch

import moeut
from moeut.decoding import greedy_decode

BOS, EOS, PAD = 1, 2, 0
TOKENS = {"bos": BOS, "eos": EOS, "pad": PAD}


def _sources(rows=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(3, 11, (rows, 7), generator=generator)
    lengths = torch.randint(1, 8, (rows,), generator=generator)
    mask = torch.arange(7) < lengths[:, None]
    return source.masked_fill(~mask, PAD), mask


def _model(make_model, form, **options):
    """A model that ends some rows early, some late and some not at all, for these sources."""
    model = make_model(form, seed=3, group=1, repeats=2, **options).eval()
    source, mask = _sources()
    with torch.no_grad():
        model.head.weight.mul_(4)
        for bias in torch.arange(-4.0, 9.0, 0.75):
            model.head.bias[EOS] = bias
            lengths = greedy_decode(model, source, mask, **TOKENS, max_length=9).lengths
            if 1 <= (lengths == 9).sum() <= 4 and len(set(lengths.tolist())) >= 3:
                return model
    raise AssertionError("no bias makes the rows end at different steps")


@torch.no_grad()
def _naive(model, source, mask, *, max_length, suppress_eos=False, num_repeats=None, prefix=True):
    """Decode each row alone, by full passes without a cache."""
    results = []
    for row, real in zip(source, mask, strict=True):
        prompt = row[real].unsqueeze(0)
        is_lm = model.config.form == "decoder_lm"
        tokens = prompt if is_lm else torch.tensor([[BOS]])
        words, finished = [], False
        for _ in range(max_length):
            if is_lm:
                length = torch.tensor([prompt.shape[1]]) if prefix else None
                logits = model(tokens, prefix_length=length, num_repeats=num_repeats).logits
            else:
                logits = model(prompt, tokens, num_repeats=num_repeats).logits
            last = logits[0, -1]
            if suppress_eos:
                last[EOS] = float("-inf")
            word = int(last.argmax())
            if word == EOS:
                finished = True
                break
            words.append(word)
            tokens = torch.cat((tokens, torch.tensor([[word]])), dim=1)
        results.append((words, finished))
    return results


def _rows(decoded):
    for tokens, length in zip(decoded.tokens, decoded.lengths, strict=True):
        assert (tokens[length:] == PAD).all()
    return [
        (tokens[:length].tolist(), bool(finished))
        for tokens, length, finished in zip(
            decoded.tokens, decoded.lengths, decoded.finished, strict=True
        )
    ]


@pytest.mark.parametrize("form", ["decoder_lm", "encoder_decoder"])
@pytest.mark.parametrize("suppress_eos", [False, True])
@pytest.mark.parametrize("repeats", [None, 3])
@pytest.mark.parametrize("position", ["rotary", "relative"])
def test_greedy_decoding_is_naive_decoding(make_model, form, suppress_eos, repeats, position):
    model = _model(make_model, form, position=position)
    source, mask = _sources()
    options = {"max_length": 9, "suppress_eos": suppress_eos, "num_repeats": repeats}
    wanted = _naive(model, source, mask, **options)
    decoded = greedy_decode(model, source, mask, **TOKENS, **options)
    assert _rows(decoded) == wanted
    if suppress_eos:
        assert (decoded.lengths == 9).all()
        assert not decoded.finished.any()
        assert not (decoded.tokens == EOS).any()
    elif repeats is None:
        assert len({len(words) for words, _ in wanted}) >= 3
        assert {finished for _, finished in wanted} == {True, False}


def test_a_prompt_can_be_read_causally(make_model):
    model = _model(make_model, "decoder_lm")
    source, mask = _sources()
    results = []
    for prefix in (True, False):
        wanted = _naive(model, source, mask, max_length=6, prefix=prefix)
        decoded = greedy_decode(
            model,
            source,
            mask,
            **TOKENS,
            max_length=6,
            bidirectional_prompt=prefix,
        )
        assert _rows(decoded) == wanted
        results.append(wanted)
    assert results[0] != results[1]


@pytest.mark.parametrize("form", ["decoder_lm", "encoder_decoder"])
def test_one_evaluation_per_token_on_fewer_and_fewer_rows(make_model, form, monkeypatch):
    model = _model(make_model, form)
    source, mask = _sources()
    seen = []
    forward = model.decoder.forward
    monkeypatch.setattr(
        model.decoder,
        "forward",
        lambda x, inputs: (seen.append(tuple(x.shape[:2])), forward(x, inputs))[1],
    )
    decoded = greedy_decode(model, source, mask, **TOKENS, max_length=9)
    assert len(seen) == 9
    assert all(columns == 1 for _, columns in seen[1:])
    assert seen[0][0] == 8
    assert seen[-1][0] < 8
    running = 8 - int(decoded.finished.sum())
    assert seen[-1][0] <= max(2 * running, 1)


def test_a_row_that_has_ended_needs_no_position(make_model):
    """Positions end where the last token stands that a row still has to read."""
    model = _model(make_model, "decoder_lm", position="learned")
    for seed in range(30):
        source, mask = _sources(rows=3, seed=seed)
        wanted = greedy_decode(model, source, mask, **TOKENS, max_length=9)
        read = mask.sum(1) + wanted.lengths.clamp_max(8)  # the last token written is not read
        room = int(read.max())
        # A row ends early that would need more room if it went on beside the two others.
        if wanted.finished.sum() == 1 and mask.sum(1)[wanted.finished] + 8 > room:
            break
    else:
        raise AssertionError("no such rows")
    position = dataclasses.replace(model.config.position, max_length=room)
    small = moeut.build(dataclasses.replace(model.config, position=position)).double().eval()
    state = model.state_dict()
    state["decoder.position.weight"] = state["decoder.position.weight"][:room]
    small.load_state_dict(state)
    found = greedy_decode(small, source, mask, **TOKENS, max_length=9)
    assert _rows(found) == _rows(wanted)


def test_decoding_stops_when_every_row_has_ended(make_model):
    model = _model(make_model, "encoder_decoder")
    with torch.no_grad():
        model.head.bias[EOS] = 100.0
    source, mask = _sources()
    decoded = greedy_decode(model, source, mask, **TOKENS, max_length=50)
    assert decoded.tokens.shape == (8, 0)
    assert decoded.finished.all()
    assert (decoded.lengths == 0).all()


@pytest.mark.parametrize("form", ["decoder_lm", "encoder_decoder"])
def test_no_rows_decode_to_no_rows(make_model, form):
    model = _model(make_model, form)
    source, mask = _sources()
    decoded = greedy_decode(model, source[:0], mask[:0], **TOKENS, max_length=4)
    assert decoded.tokens.shape == (0, 0)
    assert decoded.lengths.shape == decoded.finished.shape == (0,)


def test_a_row_without_a_prompt_is_refused(make_model):
    model = _model(make_model, "decoder_lm")
    source, mask = _sources()
    mask[1] = False
    with pytest.raises(ValueError, match="source_mask: a row has no real token"):
        greedy_decode(model, source, mask, **TOKENS, max_length=4)


def test_the_model_is_left_as_it_was(make_model):
    model = _model(make_model, "decoder_lm", dropout=0.5).train()
    source, mask = _sources()
    options = {**TOKENS, "max_length": 4}
    first = greedy_decode(model, source, mask, **options)
    second = greedy_decode(model, source, mask, **options)
    assert model.training
    assert model.decoder.layers[0].training
    assert _rows(first) == _rows(second)  # without dropout
    with pytest.raises(ValueError, match="max_length=0: must be at least 1"):
        greedy_decode(model, source, mask, **{**options, "max_length": 0})
