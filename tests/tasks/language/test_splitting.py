"""Which split a document goes to: by its text alone, or as upstream says."""

from __future__ import annotations

import collections
import doctest
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.language import splitting
from tasks.language.splitting import DIGEST_BYTES, DigestSet, SplitRule, digest, first_occurrences

RULE = SplitRule(validation_fraction=0.2, test_fraction=0.1)


def test_docstring_example_is_true():
    assert doctest.testmod(splitting).failed == 0


def test_digest_is_the_start_of_the_texts_sha256():
    # echo -n é | sha256sum
    assert digest("é").hex() == "4a99557e4033c3539de2eb65472017ca"


def test_fractions_are_kept_to_within_chance():
    counts = collections.Counter(RULE.split(None, digest(f"text {i}")) for i in range(20_000))
    # Five standard deviations of a binomial count: 5 · sqrt(20000 · 0.2 · 0.8) = 283
    assert counts["validation"] == pytest.approx(4000, abs=283)
    assert counts["test"] == pytest.approx(2000, abs=213)


def test_a_larger_fraction_keeps_the_smaller_ones_test_documents():
    larger = SplitRule(validation_fraction=0.2, test_fraction=0.3)
    texts = [digest(f"text {i}") for i in range(2000)]
    assert all(
        larger.split(None, text) == "test" for text in texts if RULE.split(None, text) == "test"
    )


def test_splits_of_upstream_are_used_and_test_is_cut_from_validation():
    rule = SplitRule(0.2, 0.1, frozenset({"train", "validation"}))
    texts = [digest(f"text {i}") for i in range(6000)]
    assert {rule.split("train", text) for text in texts} == {"train"}
    counts = collections.Counter(rule.split("validation", text) for text in texts)
    assert set(counts) == {"validation", "test"}
    # One third of it, as the fractions say: 5 · sqrt(6000 · 1/3 · 2/3) = 183
    assert counts["test"] == pytest.approx(2000, abs=183)


def test_all_three_of_upstream_are_used_as_they_are():
    rule = SplitRule(0.4, 0.4, frozenset({"train", "validation", "test"}))
    for split, number in itertools.product(("train", "validation", "test"), range(20)):
        assert rule.split(split, digest(str(number))) == split


def test_validation_is_cut_from_train_where_upstream_has_a_test_alone():
    rule = SplitRule(0.2, 0.1, frozenset({"train", "test"}))
    counts = collections.Counter(rule.split("train", digest(str(i))) for i in range(5000))
    assert set(counts) == {"train", "validation"}
    assert counts["validation"] == pytest.approx(1000, abs=142)


@given(
    st.sets(st.sampled_from(["train", "validation", "test"])),
    st.sampled_from([None, "train", "validation", "test"]),
    st.text(max_size=5),
)
def test_a_document_comes_only_where_its_part_may_reach(fixed, part_split, text):
    rule = SplitRule(0.3, 0.3, frozenset(fixed | ({part_split} if part_split else set())))
    assert rule.split(part_split, digest(text)) in rule.may_reach(part_split)


@given(st.sets(st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES)), st.binary(min_size=16))
def test_a_set_of_digests_holds_those_it_was_given(members, other):
    # Zero bytes at the end are the trap: NumPy's strings end there.
    members = {*members, bytes(DIGEST_BYTES), b"a" * 15 + b"\0"}
    held = DigestSet(np.frombuffer(b"".join(members), np.uint8))
    assert all(member in held for member in members)
    assert (other[:16] in held) == (other[:16] in members)
    assert other[:16] not in DigestSet(np.empty(0, np.uint8))


def test_first_occurrences_over_several_calls():
    seen: set[bytes] = set()
    assert first_occurrences([b"a", b"b", b"a"], seen).tolist() == [True, True, False]
    assert first_occurrences([b"b", b"c"], seen).tolist() == [False, True]
