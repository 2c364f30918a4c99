"""Sampling: the right distribution, one model evaluation a token, the same without a cache."""

from __future__ import annotations

import pytest
import torch

import moeut
from moeut.decoding import decode, read_prompt
from moeut.sampling import Rereader, generate, probabilities

VOCABULARY = 11


@pytest.fixture(params=["transformer", "universal", "moeut"])
def model(request):
    torch.manual_seed(0)
    config = moeut.architecture(
        request.param,
        form="decoder_lm",
        vocabulary_size=VOCABULARY,
        d_model=16,
        attention={"num_heads": 2},
    )
    return moeut.build(config).double().eval()


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0], [8, 9, 10, 0, 0]])
    lengths = torch.tensor([5, 2, 3])
    return tokens, torch.arange(5) < lengths[:, None]


def test_greedy_equals_the_full_pass_of_each_row_alone(model) -> None:
    tokens, mask = prompts()
    result = generate(model, tokens, mask, max_tokens=6, temperature=0.0)
    for row in range(3):
        text = tokens[row][mask[row]]
        for expected in result.tokens[row]:
            best = model(text[None]).logits[0, -1].argmax()
            assert best == expected
            text = torch.cat((text, best[None]))


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.7}, {"temperature": 0.0}])
def test_cache_and_rereading_give_the_same_text(model, settings) -> None:
    tokens, mask = prompts()
    results = [
        generate(
            model,
            tokens,
            mask,
            max_tokens=7,
            generator=torch.Generator().manual_seed(3),
            use_cache=use_cache,
            num_repeats=None,
            **settings,
        ).tokens
        for use_cache in (True, False)
    ]
    assert torch.equal(*results)


def test_one_model_evaluation_of_one_token_per_step(model) -> None:
    tokens, mask = prompts()
    read = []
    model.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].shape[1]))
    generate(model, tokens, mask, max_tokens=6, temperature=0.0)
    assert read == [5, 1, 1, 1, 1, 1]
    read.clear()
    generate(model, tokens, mask, max_tokens=6, temperature=0.0, use_cache=False)
    assert read == [5, 6, 7, 8, 9, 10]


def test_a_row_ends_before_the_stop_token(model) -> None:
    tokens, mask = prompts()
    free = generate(model, tokens, mask, max_tokens=6, temperature=0.0)
    stop = int(free.tokens[1, 2])
    stopped = generate(model, tokens, mask, max_tokens=6, temperature=0.0, stop=stop, pad=0)
    for row in range(3):
        places = (free.tokens[row] == stop).nonzero().flatten().tolist()
        length = places[0] if places else 6
        assert int(stopped.lengths[row]) == length
        assert bool(stopped.finished[row]) == bool(places)
        assert torch.equal(stopped.tokens[row, :length], free.tokens[row, :length])


def test_what_a_row_draws_does_not_depend_on_the_ends_of_others(model) -> None:
    tokens, mask = prompts()
    free, stopped = (
        generate(
            *(model, tokens, mask),
            max_tokens=40,
            stop=stop,
            generator=torch.Generator().manual_seed(5),
        )
        for stop in (None, 4)
    )
    assert len(set(stopped.lengths.tolist())) == 3
    for row, length in enumerate(stopped.lengths.tolist()):
        assert torch.equal(stopped.tokens[row, :length], free.tokens[row, :length])


def test_leaving_out_rows_that_have_ended_changes_nothing(model) -> None:
    tokens, mask = prompts()
    sizes: list[int] = []

    def digest(logits: torch.Tensor) -> torch.Tensor:  # the best would be one token for ever
        sizes.append(logits.shape[0])
        return (logits[:, 0] * 1e6).long() % VOCABULARY

    for stop in range(4, VOCABULARY):
        found = []
        for drops_ended in (True, False):
            settings = {"end": stop, "pad": 0, "max_length": 6, "drops_ended": drops_ended}
            with torch.no_grad():
                cached = read_prompt(model, tokens, mask, bidirectional=False)
                found.append(decode(cached, digest, **settings))
                found.append(decode(Rereader(model, tokens, mask, None), digest, **settings))
        for one in found:
            assert torch.equal(one.tokens, found[0].tokens)
            assert torch.equal(one.finished, found[0].finished)
    assert min(sizes) == 1


def test_tokens_are_told_as_they_come(model) -> None:
    tokens, mask = prompts()
    told = []
    result = generate(
        model,
        tokens,
        mask,
        max_tokens=5,
        temperature=0.0,
        on_token=lambda chosen, running: told.append(chosen.clone()),
    )
    assert torch.equal(torch.stack(told, dim=1), result.tokens)


def test_probabilities_by_hand() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()

    def kept(**settings) -> list[float]:
        return probabilities(logits, **{"temperature": 1.0} | settings)[0].tolist()

    assert kept() == pytest.approx([0.1, 0.4, 0.2, 0.3])
    assert kept(top_k=2) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    # 0.4 and 0.3 have 0.7 between them: the third is needed for anything above.
    assert kept(top_p=0.69) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert kept(top_p=0.71) == pytest.approx([0, 4 / 9, 2 / 9, 3 / 9])
    assert kept(top_p=1e-6) == pytest.approx([0, 1, 0, 0])
    squares = [0.01, 0.16, 0.04, 0.09]
    assert kept(temperature=0.5) == pytest.approx([s / 0.3 for s in squares])
    # top_p looks at what top_k has left.
    assert kept(top_k=3, top_p=0.5) == pytest.approx([0, 4 / 7, 0, 3 / 7])


def test_extreme_settings_leave_the_distribution_whole() -> None:
    logits = torch.tensor([[0.0, -40.0, 3.0, -90.0], [1.0, 1.0, 0.0, 1.0]])
    free = probabilities(logits, temperature=1.0)
    # All of the probability is all of the tokens, though the first has 1 of it within rounding.
    assert torch.equal(probabilities(logits, temperature=1.0, top_p=1.0), free)
    assert bool((free > 0).all())
    # No temperature is too small: the most likely tokens share it, and nothing is 0 / 0.
    for temperature in (1e-10, 1e-45, 5e-324):
        cold = probabilities(logits, temperature=temperature)
        assert cold[0].tolist() == [0, 0, 1, 0]
        assert cold[1].tolist() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])
    hot = probabilities(logits, temperature=1e300)
    assert hot.flatten().tolist() == pytest.approx([0.25] * 8)
    # Of equals the lower ids are kept.
    assert probabilities(logits, temperature=1.0, top_k=2)[1].tolist() == [0.5, 0.5, 0, 0]
    assert probabilities(logits, temperature=1.0, top_p=1e-9)[1].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_ids_that_the_tokenizer_lacks_are_not_written(model, temperature: float) -> None:
    tokens, mask = prompts()
    settings = {"max_tokens": 20, "temperature": temperature}
    draw = torch.Generator().manual_seed(0)
    free = generate(model, tokens, mask, generator=draw, **settings).tokens
    limit = int(free.max())
    kept = generate(model, tokens, mask, num_ids=limit, generator=draw, **settings).tokens
    assert int(kept.max()) < limit


def test_logits_that_are_no_numbers_are_refused(model) -> None:
    tokens, mask = prompts()
    model.embedding.weight.data[6, 0] = torch.nan  # of the second row's prompt alone
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match="logits are not finite"):
            generate(model, tokens, mask, max_tokens=2, temperature=temperature)


def test_what_is_drawn_has_the_distribution() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log().expand(20_000, -1)
    chances = probabilities(logits, temperature=1.0, top_p=0.71)
    drawn = torch.multinomial(chances, 1, generator=torch.Generator().manual_seed(0))
    share = drawn.flatten().bincount(minlength=4) / 20_000
    expected = torch.tensor([0, 4 / 9, 2 / 9, 3 / 9])
    assert (share - expected).abs().max() < 4 * (0.25 / 20_000) ** 0.5
    assert share[0] == 0


def test_the_seed_decides(model) -> None:
    tokens, mask = prompts()

    def text(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return generate(model, tokens, mask, max_tokens=20, generator=generator).tokens

    assert torch.equal(text(1), text(1))
    assert not torch.equal(text(1), text(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, r"top_p=0\.0"),
        ({"top_p": 1.5}, r"top_p=1\.5"),
        ({"max_tokens": 0}, "max_tokens=0"),
    ],
)
def test_settings_out_of_range(model, settings, message) -> None:
    tokens, mask = prompts()
    with pytest.raises(ValueError, match=message):
        generate(model, tokens, mask, **{"max_tokens": 3} | settings)


def test_an_empty_prompt_is_refused(model) -> None:
    tokens, mask = prompts()
    mask[1] = False
    with pytest.raises(ValueError, match="empty"):
        generate(model, tokens, mask, max_tokens=3)
