"""The menu of corpora: which files, in which order, under which commit, and what is refused."""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter

import pytest

from tasks.language.corpora import CORPORA, open_corpus
from tasks.language.stdlib import StandardLibrary

# Of the lines "split  path", in order, as the classes of the paper's training code list them.
PAPER_ORDERS = {
    "slimpajama": "59cafdddccd6",
    "the_stack": "68cf3da1b77e",
}


@pytest.mark.parametrize(
    ("name", "splits", "first"),
    [
        ("c4", {"train": 1024, "validation": 8}, "en/c4-train.00000-of-01024.json.gz"),
        ("pes2o", {"train": 20, "validation": 2}, "data/v2/train-00000-of-00020.json.gz"),
        (
            "slimpajama",
            {"train": 59166, "validation": 31428, "test": 31411},
            "train/chunk3/example_train_1579.jsonl.zst",
        ),
        (
            "the_stack",
            {"train": 1611, "validation": 177},
            "data/assembly/train-00002-of-00003.parquet",
        ),
    ],
)
def test_hub_corpora_know_their_files_without_network(name, splits, first):
    corpus = open_corpus(name)
    parts = corpus.parts()
    assert Counter(part.split for part in parts) == splits
    assert parts[0].name == first
    assert len({part.name for part in parts}) == len(parts)
    assert pickle.loads(pickle.dumps(parts[:3])) == parts[:3]
    fingerprint = corpus.fingerprint()
    assert len(fingerprint["revision"]) == 40
    assert fingerprint["files"] == len(parts)
    listing = "".join(f"{part.split}  {part.name}\n" for part in parts)
    digest = hashlib.sha256(listing.encode()).hexdigest()
    assert fingerprint["sha256"] == digest
    assert digest.startswith(PAPER_ORDERS.get(name, ""))
    assert corpus.uses_network


def test_the_stack_holds_out_a_tenth_of_each_language_and_takes_turns():
    parts = open_corpus("the_stack").parts()
    by_language = Counter((part.name.split("/")[1], part.split) for part in parts)
    assert by_language[("python", "validation")] == 20
    assert by_language[("scala", "validation")] == 1
    assert by_language[("assembly", "validation")] == 1
    assert [part.name.split("/")[1] for part in parts[:8]] == [
        "assembly", "c++", "haskell", "html", "javascript", "python", "rust", "scala",
    ]  # fmt: skip
    assert open_corpus("the_stack").separator == ""
    assert open_corpus("c4").separator == "<STORY_SEP>"


def test_the_papers_tokenizers_are_made_of_so_many_parts():
    names = ("c4", "pes2o", "slimpajama", "the_stack", "stdlib")
    assert [open_corpus(name).paper_tokenizer_parts for name in names] == [10, 1, 200, 20, None]


def test_stdlib_needs_nothing():
    corpus = open_corpus("stdlib")
    assert isinstance(corpus, StandardLibrary)
    assert not corpus.uses_network


def test_every_entry_says_what_it_is():
    for entry in CORPORA.values():
        assert entry.summary
        assert entry.fixes_splits


def test_wrong_names_and_options_are_refused():
    with pytest.raises(ValueError, match=r"task\.corpus='stdlb': .*did you mean 'stdlib'\?"):
        open_corpus("stdlb")
    with pytest.raises(ValueError, match=r"task\.files=.*corpus 'c4' does not take it, only files"):
        open_corpus("c4", files=["a.txt"])
    with pytest.raises(ValueError, match=r"task\.text_field='x': .* only files, hub does"):
        open_corpus("stdlib", text_field="x")
    with pytest.raises(ValueError, match=r"task\.hub=None: corpus 'hub' needs the name"):
        open_corpus("hub")
    with pytest.raises(ValueError, match=r"task\.hub_revision=None: pin the data set"):
        open_corpus("hub", hub="someone/something")
