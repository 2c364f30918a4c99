"""The generated task: splits that are apart, words in the roles they should have, COGS's shares."""

import collections
import statistics

import pytest

from tasks.cogs import like
from tasks.cogs.lexicon import EXPOSED
from tasks.cogs.like import EXPOSURES, GENERALISATIONS, PRIMITIVES, CogsLike
from tasks.cogs.logical_form import NAMES, PAST, UNACCUSATIVE, logical_form, read
from tasks.cogs.official import LEXICAL, STRUCTURAL, Cogs

SMALL = {
    "train_rows": 1_500,
    "dev_rows": 100,
    "test_rows": 100,
    "gen_rows": 30,
    "lexicon_size": 8,
    "gen_depths": (3, 5),
}


@pytest.fixture(scope="module")
def small():
    return CogsLike(**SMALL)


@pytest.fixture(scope="module")
def full():
    return CogsLike(gen_rows=100)


def sentence_of(row):
    return " ".join(row.source)


def roles_of(word, row):
    """Return the roles of a word: of a noun or name its own, of a verb those of its arguments."""
    atoms = " ".join(row.target).replace(" ; ", " AND ").split(" AND ")
    nouns = {
        atom.split(" ( ")[1].rstrip(" )"): atom.removeprefix("* ").split(" ")[0]
        for atom in atoms
        if " . " not in atom
    }
    found = set()
    for atom in atoms:
        head, _, rest = atom.partition(" . ")
        role, _, terms = rest.partition(" ( ")
        if rest and not role.startswith("nmod"):
            term = terms.rstrip(" )").split(" , ")[1]
            if nouns.get(term, term) == word or head == word:
                found.add(role)
    return found


def test_sizes_are_those_of_cogs(full):
    splits = full.splits()
    assert [len(rows) for rows in splits.values()] == [24_155, 3_000, 3_000, 2_100]
    categories = collections.Counter(row.category for row in splits["train"])
    assert categories["in_distribution"] == 24_000
    assert categories["primitive"] == 143
    gen = collections.Counter(row.category for row in splits["gen"])
    assert gen == dict.fromkeys((*LEXICAL, *STRUCTURAL), 100)
    assert tuple(GENERALISATIONS) == LEXICAL


def test_it_does_not_bear_the_name_of_cogs():
    assert CogsLike.name != Cogs.name
    assert "not COGS" in CogsLike.__doc__
    assert "never to be reported as COGS" in like.__doc__


@pytest.mark.parametrize("task", ["small", "full"])
def test_no_sentence_is_in_two_splits_or_twice(task, request):
    splits = request.getfixturevalue(task).splits()
    sources = [row.source for rows in splits.values() for row in rows]
    assert len(sources) == len(set(sources))


def test_targets_are_those_of_the_rule(small):
    for rows in small.splits().values():
        for row in rows:
            assert " ".join(row.target) == logical_form(sentence_of(row))
            assert row.difficulty == read(sentence_of(row)).depth


@pytest.mark.parametrize("task", ["small", "full"])
def test_every_input_word_outside_train_is_in_train(task, request):
    splits = request.getfixturevalue(task).splits()
    known = {token for row in splits["train"] for token in row.source}
    for name in ("dev", "test", "gen"):
        assert {token for row in splits[name] for token in row.source} <= known


def test_depths(full, small):
    for task, depths in ((full, range(3, 13)), (small, range(3, 6))):
        splits = task.splits()
        for name in ("train", "dev", "test"):
            assert max(row.difficulty for row in splits[name]) <= 2
        for row in splits["gen"]:
            reading = read(sentence_of(row))
            if row.category == "cp_recursion":
                assert reading.clause_depth == row.difficulty in depths
                assert reading.phrase_depth <= 2
            elif row.category == "pp_recursion":
                assert reading.phrase_depth == row.difficulty in depths
                assert reading.clause_depth <= 2
            else:
                assert row.difficulty <= 2
        per_category = task.gen_rows
        for category in ("cp_recursion", "pp_recursion"):
            counts = collections.Counter(
                row.difficulty for row in splits["gen"] if row.category == category
            )
            assert counts == dict.fromkeys(depths, per_category / len(depths))


EXPECTED_ROLES = {
    "subject_common": "agent",
    "subject_proper": "agent",
    "object_common": "theme",
    "object_proper": "theme",
    "transitive_subject": "agent",
    "unaccusative_subject": "theme",
    "active": "agent theme",
    "passive": "theme",
    "object_omitted": "agent",
    "unaccusative": "theme",
    "to_dative": "agent theme recipient",
    "double_object_dative": "agent theme recipient",
}


def test_exposed_words_are_in_train_once_and_in_one_role(small):
    train = small.split("train")
    assert set(EXPECTED_ROLES) == set(EXPOSURES)
    assert set(EXPOSURES) | set(PRIMITIVES) == set(EXPOSED)
    for key in EXPOSURES:
        word = EXPOSED[key]
        rows = [row for row in train if word in " ".join(row.target).split(" ")]
        assert [row.category for row in rows] == [f"exposure_{key}"]
        roles = roles_of(word, rows[0])
        if key == "passive":
            assert "was" in rows[0].source
            roles -= {"agent"}
        assert roles == set(EXPECTED_ROLES[key].split(" ")), key
    for key in PRIMITIVES:
        rows = [row for row in train if EXPOSED[key] in " ".join(row.target).split(" ")]
        assert [(row.category, row.source) for row in rows] == [("primitive", (EXPOSED[key],))]


def test_generalisations_have_their_word_in_the_other_role(small):
    for row in small.split("gen"):
        if row.category in STRUCTURAL:
            continue
        key, _ = GENERALISATIONS[row.category]
        word, tokens = EXPOSED[key], row.source
        assert word in row.target
        roles = roles_of(word, row)
        if row.category.startswith(("subj_to_obj", "prim_to_obj")):
            assert roles == {"theme"}
        elif row.category.startswith(("obj_to_subj", "prim_to_subj", "prim_to_inf")):
            assert roles == {"agent"}
        elif row.category == "active_to_passive":
            assert "theme" in roles
            assert tokens[tokens.index("blessed") - 1] == "was"
        elif row.category.endswith(("_to_active", "_to_transitive")):
            assert roles == {"agent", "theme"}
            assert "was" not in tokens
        elif row.category == "do_dative_to_pp_dative":
            after = tokens[tokens.index("teleported") :]
            assert roles == {"agent", "theme", "recipient"}
            assert "to" in after
        elif row.category == "pp_dative_to_do_dative":
            assert roles == {"agent", "theme", "recipient"}
            assert "to" not in tokens[tokens.index("shipped") :]
        else:
            wanted = "theme" if row.category.endswith("as_unacc_subj") else "agent"
            assert roles == {wanted}
            assert tokens[-1] == "."
            assert tokens[-2] in PAST, "the verb has no object"
            assert tokens[-3] == word


def subject_is_modified(tokens):
    """Whether a prepositional phrase comes between a clause's beginning and its verb."""
    clause = []
    for token in tokens:
        if token == "that":
            clause = []
            continue
        clause.append(token)
        if token in PAST or token == "was":
            if {"on", "in", "beside"} & set(clause):
                return True
            clause = [token]
            break
    if "that" in tokens:
        last = len(tokens) - 1 - tokens[::-1].index("that")
        return subject_is_modified(tokens[last + 1 :])
    return False


def test_only_one_category_has_prepositional_phrases_on_subjects(small):
    for name, rows in small.splits().items():
        for row in rows:
            expected = row.category == "obj_pp_to_subj_pp"
            assert subject_is_modified(row.source) == expected, (name, sentence_of(row))


def test_the_data_seed_and_only_it_decides(small):
    assert CogsLike(**SMALL).data_hash() == small.data_hash()
    # The same rows on every machine and Python: runs of different places can be compared.
    assert small.data_hash().startswith("3f29f7612edb52c7")
    other = CogsLike(**SMALL, seed=1)
    assert other.data_hash() != small.data_hash()
    assert [len(rows) for rows in other.splits().values()] == [
        len(rows) for rows in small.splits().values()
    ]


def test_more_exposures():
    task = CogsLike(**{**SMALL, "train_rows": 50, "gen_rows": 3, "exposure_rows": 4})
    rows = [row for row in task.split("train") if row.category.startswith("exposure")]
    assert collections.Counter(row.category for row in rows) == {
        f"exposure_{key}": 4 for key in EXPOSURES
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_rows": 0}, "task.train_rows=0: must be at least 1"),
        ({"lexicon_size": 1}, "task.lexicon_size=1: must be 2 to 100, or null"),
        ({"gen_depths": (2, 5)}, "task.gen_depths"),
        ({"gen_depths": (5, 3)}, "task.gen_depths"),
        ({"train_rows": "many"}, "task.train_rows='many'"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        CogsLike(**options)


def test_a_lexicon_too_small_for_the_rows():
    task = CogsLike(train_rows=10, dev_rows=1, test_rows=1, gen_rows=3_000, lexicon_size=2)
    with pytest.raises(
        ValueError, match=r"task\.lexicon_size=2: no new sentence of train's words for"
    ):
        task.splits()


def kind_of(tokens):
    """Return the type of a sentence: of its outermost clause, or that it has several."""
    verb = next(i for i, token in enumerate(tokens) if token in PAST or token == "was")
    following = tokens[verb + 1]
    if "that" in tokens:
        return "clauses"
    if tokens[verb] == "was":
        theme = tokens[verb + 2]
        return "recipient passive" if theme in NAMES or theme in ("a", "the") else "theme passive"
    if following == ".":
        return "unaccusative" if PAST[tokens[verb]] in UNACCUSATIVE else "intransitive"
    return "infinitive" if following == "to" else "active with object"


def shares(rows):
    """Return what a set of training rows is like: shares in percent, and the mean target length."""
    total = len(rows)
    counts = collections.Counter(kind_of(row.source) for row in rows)
    counts.update(f"depth {row.difficulty:g}" for row in rows)
    for word in ("cake", "Emma", "gave", "liked", "house", "the"):
        counts[word] = sum(word in row.source for row in rows)
    found = {name: 100 * count / total for name, count in counts.items()}
    return found, statistics.mean(len(row.target) for row in rows)


@pytest.mark.official
def test_training_rows_are_like_the_official_ones(full, data_dir):
    """Shares within one point of the official ones, which have their own sampling error."""
    official, official_length = shares(
        [row for row in Cogs().split("train") if row.category == "in_distribution"]
    )
    generated, generated_length = shares(
        [row for row in full.split("train") if row.category == "in_distribution"]
    )
    assert official["theme passive"] == pytest.approx(34.3, abs=0.05)
    assert official["active with object"] == pytest.approx(32.4, abs=0.05)
    assert set(official) == set(generated)
    for name, share in official.items():
        assert generated[name] == pytest.approx(share, abs=1.2), name
    assert generated_length == pytest.approx(official_length, rel=0.01)
