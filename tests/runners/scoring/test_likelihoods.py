"""Log-likelihoods against one text at a time, without padding, cache or batches."""

from __future__ import annotations

import doctest
import random

import pytest
import torch

from moeut.recurrence.cache import StackCache
from runners.scoring import likelihoods
from runners.scoring.language_model import LanguageModel
from runners.scoring.likelihoods import Request, encode, is_truncated, score_requests
from tasks.language.tokenizers import Bytes
from tasks.zero_shot import Likelihood


class WithoutBoundary(Bytes):
    """Bytes as a tokenizer like the paper's, which has no id between documents."""

    boundary_id = None


def tokenizer(kind: type[Bytes] = Bytes) -> Bytes:
    return kind(Bytes.CONTENT)


@pytest.fixture(scope="module", params=["moeut", "transformer"])
def language(request, tiny_language_model) -> LanguageModel:
    return tiny_language_model(request.param)


@torch.no_grad()
def one_at_a_time(language: LanguageModel, request: Request) -> tuple[float, bool]:
    """Score a continuation piece by piece, each by a pass over as much as may be seen."""
    tokens, length = request.context + request.continuation, language.context_length
    total, greedy = 0.0, True
    begin = len(request.context)
    while begin < len(tokens):
        end = min(begin + length, len(tokens))
        seen = list(tokens[:end][-length - 1 : -1])
        logits = language.model(torch.tensor([seen])).logits[0, begin - end :]
        wanted = torch.tensor(tokens[begin:end])
        total += float(logits.log_softmax(-1)[torch.arange(len(wanted)), wanted].sum())
        greedy = greedy and bool((logits.argmax(-1) == wanted).all())
        begin = end
    return total, greedy


@pytest.fixture(scope="module")
def expected(language) -> list[tuple[float, bool]]:
    return [one_at_a_time(language, request) for request in flat(questions())]


def questions() -> list[list[Request]]:
    """Requests of many lengths: shared contexts, shared beginnings, cut off, longer than all."""
    draw = random.Random(5)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(257) for _ in range(count))

    rows = []
    for length in (1, 5, 18, 23, 24, 30):
        context = ids(length)
        rows.append([Request(context, ids(n)) for n in (1, 4, 2, 3)])
        rows.append([Request(ids(length), ids(3))])
    start = ids(9)
    rows.append([Request((256,), start + ids(n)) for n in (2, 5)])  # as BLiMP: no context
    rows.append([Request((256,), (*start, 7)), Request((256,), (*start, 7))])  # the same
    rows.append([Request(ids(12), (3,)), Request(ids(12), (4,))])
    rows.append([Request(ids(3), ids(count)) for count in (24, 25, 60)])
    rows.append([Request((8,), ())])  # nothing to score
    return rows


def flat(rows) -> list:
    return [entry for row in rows for entry in row]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("batch_size", [3, 64])
def test_batches_and_cache_change_nothing(language, expected, batch_size, use_cache):
    rows = questions()
    found = score_requests(language, rows, batch_size=batch_size, use_cache=use_cache)
    assert [len(row) for row in found] == [len(row) for row in rows]
    answers = zip(flat(rows), flat(found), expected, strict=True)
    for request, answer, (total, greedy) in answers:
        assert answer.log_likelihood == pytest.approx(total, abs=1e-10)
        assert answer.is_greedy == greedy
        assert answer.num_tokens == len(request.continuation)


def test_shared_contexts_are_read_once(language, monkeypatch):
    read = []
    forward = type(language.model).forward

    def counted(self, tokens, **options):
        read.append((tokens.shape[0], tokens.shape[1], options["cache"] is not None))
        return forward(self, tokens, **options)

    monkeypatch.setattr(type(language.model), "forward", counted)
    context = tuple(range(16))
    rows = [[Request(context, (i, i + 1, i + 2)) for i in range(4)]]
    score_requests(language, rows)
    assert read == [(1, 16, True), (4, 2, True)]
    read.clear()
    score_requests(language, [[Request(context, (i,)) for i in range(4)]])
    assert read == [(1, 16, True)]
    read.clear()
    score_requests(language, rows, use_cache=False)
    assert read == [(4, 18, False)]


def test_a_mistake_in_the_rows_of_the_cache_would_show(language, monkeypatch):
    """The mutation: continuations read from the keys and values of another question's context."""
    rows = questions()
    right = flat(score_requests(language, rows))
    select = StackCache.select
    monkeypatch.setattr(StackCache, "select", lambda self, rows: select(self, rows.flip(0)))
    wrong = flat(score_requests(language, rows))
    differences = [
        abs(a.log_likelihood - b.log_likelihood) for a, b in zip(right, wrong, strict=True)
    ]
    assert max(differences) > 1e-3


def test_greedy_continuation_is_known(language):
    context = (5, 6, 7)
    tokens = list(context)
    with torch.no_grad():
        for _ in range(3):
            tokens.append(int(language.model(torch.tensor([tokens])).logits[0, -1].argmax()))
    best = Request(context, tuple(tokens[3:]))
    other = Request(context, (*best.continuation[:2], (best.continuation[2] + 1) % 257))
    (answers,) = score_requests(language, [[best, other]])
    assert [answer.is_greedy for answer in answers] == [True, False]
    assert answers[0].log_likelihood > answers[1].log_likelihood


def test_another_depth_is_another_score(tiny_language_model):
    language = tiny_language_model("moeut")
    rows = [[Request((1, 2, 3), (4, 5)), Request((1, 2, 3), (6, 7))]]
    own = score_requests(language, rows)
    assert score_requests(language, rows, num_repeats=2) == own
    assert score_requests(language, rows, num_repeats=3) != own


def test_stopping_between_batches(language):
    class Stop(Exception):
        pass

    seen = []

    def on_batch(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) == 2:
            raise Stop

    with pytest.raises(Stop):
        score_requests(language, questions(), batch_size=4, on_batch=on_batch)
    assert seen[0][0] == 0
    assert seen[1][0] > 0


# --- tokens -----------------------------------------------------------------------------


def ids(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


def test_examples_of_the_docstrings():
    result = doctest.testmod(likelihoods)
    assert (result.failed, result.attempted) == (0, 2)


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation():
    assert encode(tokenizer(), "Answer: \n", "yes") == Request(
        (256, *ids("Answer:")), ids(" \nyes")
    )


def test_text_begins_after_the_boundary():
    assert encode(tokenizer(), "", " yes") == Request((256,), ids(" yes"))
    assert encode(tokenizer(), "  ", "yes") == Request((256,), ids("  yes"))


def test_without_a_boundary_the_first_token_is_given():
    without = tokenizer(WithoutBoundary)
    assert encode(without, "", " yes") == Request(ids(" "), ids("yes"))
    assert encode(without, "Answer:", " yes") == Request(ids("Answer:"), ids(" yes"))
    assert encode(without, "", "y") == Request(ids("y"), ())


def test_a_continuation_without_tokens_is_refused():
    for context, continuation in (("Answer:", ""), ("", "")):
        with pytest.raises(ValueError, match="has no tokens of its own"):
            encode(tokenizer(), context, continuation)


def test_text_is_tokenized_as_one():
    """A tokenizer that joins letters: its pieces differ at the seam."""

    class Pairs(Bytes):
        def encode(self, text: str) -> list[int]:
            return [
                ord(text[i]) + 100 * (len(text[i : i + 2]) == 2) for i in range(0, len(text), 2)
            ]

    assert encode(tokenizer(Pairs), "ab", "cd").continuation == (ord("c") + 100,)
    # "abc" is 2 pieces, "abcd" too: nothing would be left of "d", as in the harness.
    with pytest.raises(ValueError, match="no tokens of its own"):
        encode(tokenizer(Pairs), "abc", "d")


def test_what_is_cut_off_is_counted():
    assert not is_truncated(Request((1,) * 4, (1,)), 4)
    assert is_truncated(Request((1,) * 4, (1, 1)), 4)


def test_nothing_to_score_is_certain(language):
    assert score_requests(language, [[Request((3,), ())], []]) == [[Likelihood(0.0, 0, True)], []]
