"""The rule from sentence to logical form, against every official row and against broken rules."""

import doctest

import pytest

from tasks.cogs import lexicon, logical_form
from tasks.cogs.logical_form import primitive_form, read

SPLIT_ROWS = {"train": 24_155, "dev": 3_000, "test": 3_000, "gen": 21_000}


def official_rows(data_dir, split):
    lines = (data_dir / "cogs" / f"{split}.tsv").read_text().splitlines()
    return [line.split("\t") for line in lines]


def wrong_rows(rows):
    return sum(logical_form.logical_form(sentence) != form for sentence, form, _ in rows)


@pytest.mark.parametrize("module", [logical_form, lexicon])
def test_examples_of_the_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted >= 1
    assert result.failed == 0


@pytest.mark.official
@pytest.mark.parametrize("split", SPLIT_ROWS)
def test_every_official_row_is_reproduced(data_dir, split):
    rows = official_rows(data_dir, split)
    assert len(rows) == SPLIT_ROWS[split]
    assert wrong_rows(rows) == 0


@pytest.mark.official
def test_every_official_primitive_is_reproduced(data_dir):
    rows = [row for row in official_rows(data_dir, "train") if row[2] == "primitive"]
    assert len(rows) == 143
    assert all(primitive_form(word) == form for word, form, _ in rows)


@pytest.mark.official
def test_an_unaccusative_subject_taken_for_an_agent_is_noticed(data_dir, monkeypatch):
    rows = official_rows(data_dir, "test")
    monkeypatch.setattr(logical_form, "UNACCUSATIVE", frozenset())
    assert wrong_rows(rows) > 100


@pytest.mark.official
def test_swapped_roles_are_noticed(data_dir, monkeypatch):
    rows = official_rows(data_dir, "test")
    swapped = {"agent": "theme", "theme": "agent"}
    role = logical_form.SentenceReader.role
    monkeypatch.setattr(
        logical_form.SentenceReader,
        "role",
        lambda self, verb, lemma, name, term: role(
            self, verb, lemma, swapped.get(name, name), term
        ),
    )
    assert wrong_rows(rows) == len(rows)


@pytest.mark.official
def test_one_wrong_inflection_is_noticed(data_dir, monkeypatch):
    monkeypatch.setitem(logical_form.PAST, "gave", "feed")
    assert wrong_rows(official_rows(data_dir, "test")) > 50


@pytest.mark.official
def test_the_lexicon_is_that_of_the_official_files(data_dir):
    words = set()
    for split in SPLIT_ROWS:
        for sentence, _, category in official_rows(data_dir, split):
            if category != "primitive":
                words |= set(sentence.split(" "))
    forms = {*logical_form.PAST, *logical_form.PARTICIPLES}
    closed = {"A", "The", "a", "the", ".", "was", "by", "to", "that", "on", "in", "beside"}
    assert {"read", "crawl"} <= logical_form.INFINITIVES
    known = logical_form.NOUNS | logical_form.NAMES | forms
    assert words <= known | closed | logical_form.INFINITIVES
    assert known - words == {"crawled"}, "no word stands in the lexicon that the files lack"


def test_the_sizes_of_the_lexicon():
    assert len(logical_form.NOUNS) == 408
    assert len(logical_form.NAMES) == 103
    for words in (
        lexicon.NAMES,
        lexicon.ANIMATE_NOUNS,
        lexicon.INANIMATE_NOUNS,
        *lexicon.PLACE_NOUNS.values(),
    ):
        assert len(words) == len(set(words)) == 100
    for words in (
        lexicon.UNERGATIVE,
        lexicon.UNACCUSATIVE,
        lexicon.OBJECT_OMISSIBLE,
        lexicon.TRANSITIVE,
        lexicon.DATIVE,
        lexicon.CLAUSE_TAKING,
        lexicon.INFINITIVE_TAKING,
        lexicon.INFINITIVES,
    ):
        assert len(words) == len(set(words)) == 20


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        (
            "The girl was given a cake by Liam .",
            "* girl ( x _ 1 ) ; give . recipient ( x _ 3 , x _ 1 ) "
            "AND give . theme ( x _ 3 , x _ 5 ) AND give . agent ( x _ 3 , Liam ) "
            "AND cake ( x _ 5 )",
        ),
        (
            "Emma wanted to sleep .",
            "want . agent ( x _ 1 , Emma ) AND want . xcomp ( x _ 1 , x _ 3 ) "
            "AND sleep . agent ( x _ 3 , Emma )",
        ),
        (
            "A cat on the TV in a box froze .",
            "* tv ( x _ 4 ) ; cat ( x _ 1 ) AND cat . nmod . on ( x _ 1 , x _ 4 ) "
            "AND tv . nmod . in ( x _ 4 , x _ 7 ) AND box ( x _ 7 ) "
            "AND freeze . theme ( x _ 8 , x _ 1 )",
        ),
    ],
)
def test_sentences_worked_out_by_hand(sentence, expected):
    assert logical_form.logical_form(sentence) == expected


@pytest.mark.parametrize(
    ("sentence", "clause_depth", "phrase_depth"),
    [
        ("Ava", 0, 0),
        ("Ava slept .", 0, 0),
        ("Ava ate a cake on a bed in a box .", 0, 2),
        ("Ava gave a cake on a bed to a cat .", 0, 1),
        ("Ava said that Liam said that a cat in a box slept .", 2, 1),
    ],
)
def test_depths(sentence, clause_depth, phrase_depth):
    reading = read(sentence)
    assert (reading.clause_depth, reading.phrase_depth) == (clause_depth, phrase_depth)


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ("A cat sleped .", "token 2, 'sleped': expected a verb in the past tense; did you mean"),
        ("A hamster slept .", "token 1, 'hamster': expected a noun"),
        ("Emma was ate .", "token 2, 'ate': expected a participle"),
        ("Emma slept", "token 2, '': expected a full stop"),
        ("Emma slept . Liam slept .", "token 3, 'Liam': expected nothing after the full stop"),
        ("emma slept .", "token 0, 'emma': expected a name"),
        ("Emma liked The cat .", "token 2, 'The': expected a full stop"),
        ("quickly", "primitive 'quickly': expected a noun"),
        ("", "primitive '': expected a noun"),
    ],
)
def test_what_is_no_sentence_is_refused(sentence, message):
    with pytest.raises(ValueError, match=message):
        logical_form.logical_form(sentence)
