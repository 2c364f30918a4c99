"""Sentences drawn from the grammar, against its probabilities."""

import collections
import doctest
import random

import pytest
from scipy import stats

from tasks.cogs import grammar, lexicon
from tasks.cogs.grammar import CLAUSES, INNERMOST, NOUN_PHRASES, Grammar, Slot, word_probabilities
from tasks.cogs.logical_form import read

DRAWS = 12_000


@pytest.fixture(scope="module")
def drawn():
    grammar = Grammar(random.Random(1))
    return [grammar.draw() for _ in range(DRAWS)]


def is_plausible(count, total, probability):
    """Whether a count lies where a binomial falls but for one time in a hundred thousand."""
    return stats.binomtest(count, total, probability).pvalue > 1e-5


def test_examples_of_the_docstrings():
    result = doctest.testmod(grammar)
    assert result.attempted >= 4
    assert result.failed == 0


def test_probabilities_add_up():
    assert sum(probability for probability, _ in CLAUSES.values()) == pytest.approx(1)
    for variants in NOUN_PHRASES.values():
        assert sum(variants.values()) == pytest.approx(1)
    assert sum(word_probabilities(100)) == pytest.approx(1)


def test_shares_of_the_sentence_types(drawn):
    outermost = collections.Counter(sentence.clauses[0] for sentence in drawn)
    assert set(outermost) == set(CLAUSES)
    for kind, (probability, _) in CLAUSES.items():
        assert is_plausible(outermost[kind], DRAWS, probability), kind
    # The four ways to start a sentence, as the grammar has them.
    active = sum(
        count for kind, count in outermost.items() if CLAUSES[kind][1].startswith("SUBJECT ")
    )
    passive = sum(
        count for kind, count in outermost.items() if CLAUSES[kind][1].startswith("THEME_SUBJECT ")
    )
    assert is_plausible(active, DRAWS, 0.49)
    assert is_plausible(outermost["unaccusative"], DRAWS, 0.06)
    assert is_plausible(passive, DRAWS, 0.375)
    assert is_plausible(DRAWS - active - passive - outermost["unaccusative"], DRAWS, 0.075)


def test_a_wrong_probability_is_noticed(drawn):
    unaccusative = sum(sentence.clauses[0] == "unaccusative" for sentence in drawn)
    passive = sum(CLAUSES[s.clauses[0]][1].startswith("THEME_SUBJECT ") for s in drawn)
    assert not is_plausible(unaccusative, DRAWS, 0.08)
    assert not is_plausible(passive, DRAWS, 0.4)


def test_shares_of_phrases_determiners_and_words(drawn):
    """In clauses with one inanimate subject and in the objects of simple sentences."""
    simple = [s.text.split(" ") for s in drawn if s.clauses == ("unaccusative_passive",)]
    simple += [s.text.split(" ") for s in drawn if s.clauses == ("transitive_passive",)]
    assert is_plausible(sum(tokens[0] == "The" for tokens in simple), len(simple), 0.5)
    expected = word_probabilities(100)
    subjects = collections.Counter(tokens[1] for tokens in simple)
    for rank in (0, 1, 2):
        word = lexicon.INANIMATE_NOUNS[rank]
        assert is_plausible(subjects[word], len(simple), expected[rank]), word
    depths = collections.Counter(
        read(s.text).phrase_depth for s in drawn if s.clauses[-1] in ("to_dative", "double_object")
    )
    total = depths.total()
    assert is_plausible(depths[0], total, 0.5)
    assert is_plausible(depths[1], total, 0.5 * 0.9)
    objects = collections.Counter(
        read(s.text).phrase_depth > 0
        for s in drawn
        if s.clauses[-1] in ("omissible", "transitive", "unaccusative_transitive")
    )
    assert is_plausible(objects[True], objects.total(), 0.375)


def test_every_draw_is_a_sentence_of_the_rule(drawn):
    for sentence in drawn[:3_000]:
        assert read(sentence.text).clause_depth == len(sentence.clauses) - 1


@pytest.mark.parametrize("kind", INNERMOST)
def test_requests_are_met(kind):
    grammar = Grammar(random.Random(2))
    symbol = CLAUSES[kind][1].split(" ")[0]
    sentence = grammar.draw(at=Slot((symbol,), (kind,)), word="shark", clause_depth=4)
    assert sentence.clauses == ("embedding",) * 4 + (kind,)
    assert sentence.text.count("shark") == 1
    reading = read(grammar.draw(at=Slot((symbol,), (kind,)), phrase_depth=7, clause_depth=0).text)
    assert (reading.clause_depth, reading.phrase_depth) == (0, 7)


def test_a_small_lexicon_keeps_the_most_frequent_words():
    grammar = Grammar(random.Random(3), lexicon_size=3)
    words = {word for _ in range(3_000) for word in grammar.draw().text.split(" ")}
    assert words & set(lexicon.NAMES) == set(lexicon.NAMES[:3])
    places = {noun for nouns in lexicon.PLACE_NOUNS.values() for noun in nouns[:3]}
    nouns = {*lexicon.ANIMATE_NOUNS[:3], *lexicon.INANIMATE_NOUNS[:3], *places}
    common = {*lexicon.ANIMATE_NOUNS, *lexicon.INANIMATE_NOUNS}
    assert words & common == nouns & common
    assert {"slept", "smiled", "laughed"} <= words
    assert "sneezed" not in words
