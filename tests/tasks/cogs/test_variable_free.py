"""The form without variables, against every official row of ReCOGS and SLOG."""

import doctest

import pytest

from tasks import slog
from tasks.cogs import official, recogs, variable_free
from tasks.cogs.recogs import Recogs


def test_examples_of_the_docstrings():
    result = doctest.testmod(variable_free)
    assert (result.attempted, result.failed) == (4, 0)


@pytest.mark.official
@pytest.mark.parametrize("split", ["train", "dev", "test", "gen"])
def test_rows_of_recogs(data_dir, split):
    with_variables = official.read_columns(official.DATA_FILES[split])
    without = official.read_columns(recogs.DATA_FILES[f"variable_free/{split}.tsv"])
    assert [
        (sentence, variable_free.variable_free(form), category)
        for sentence, form, category in with_variables
    ] == without


@pytest.mark.official
def test_rows_of_slog(data_dir):
    """Of a single word SLOG has the word, where ReCOGS has a term with lambdas."""
    with_variables, without = (slog.Slog(form=form).splits() for form in ("cogs", "variable_free"))
    words = 0
    for split, rows in with_variables.items():
        for row, free in zip(rows, without[split], strict=True):
            assert row.source == free.source
            form = variable_free.variable_free(" ".join(row.target))
            if free.category == "primitive":
                words += 1
                form = " ".join(free.source).lower() if form.startswith("LAMBDA") else form
            assert form == " ".join(free.target)
    assert words == 183


@pytest.mark.official
def test_made_by_the_rules_recogs_is_official(data_dir, monkeypatch):
    few = {split: official.DATA_FILES[split] for split in ("dev", "test")}
    monkeypatch.setattr(official, "DATA_FILES", few)  # all rows are compared above
    made = Recogs(form="variable_free", made="rules").splits()
    assert made == {
        split: recogs.read_rows(recogs.DATA_FILES[f"variable_free/{split}.tsv"]) for split in few
    }
