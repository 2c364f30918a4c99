"""The benchmark of the data path: what it reads, that its rates follow from its times."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tasks
from runners.bench import __main__ as command
from runners.bench import data
from tasks.language.windows import TokenSplit

SMALL = ["data", "--tokenizers", "bytes", "--workers", "1", "--megabytes", "1", "--stored", "1"]
SMALL += ["--context", "64", "--batch", "4", "--batches", "3", "--repeats", "1"]
SMALL += ["--tasks", "prefix_sums", "word_problem"]


def test_run_prints_and_writes(tmp_path, capsys):
    file = tmp_path / "result.json"
    assert command.main([*SMALL, "--json", str(file)]) == 0
    assert "tokens/s" in capsys.readouterr().out
    result = json.loads(file.read_text())
    size = result["corpus"]["bytes"]
    assert 1_000_000 <= size < 3_000_000
    tokenising, packing = result["tokenising"][0], result["packing"][0]
    assert tokenising["tokens_per_second"] * tokenising["seconds"] == pytest.approx(size, rel=1e-2)
    # Bytes: a token for each, and a boundary for each document and before the first of a split.
    boundaries = result["corpus"]["documents"] + 3
    expected = pytest.approx(size + boundaries, rel=1e-2)
    assert packing["tokens_per_second"] * packing["seconds"] == expected
    assert {row["what"] for row in result["loading"]} == {
        "windows, cold", "windows, warm", "document numbers, warm", "copy", "copy bytes",
    }  # fmt: skip
    sums, words = result["generating"]
    assert (sums["task"], words["task"]) == ("prefix_sums", "word_problem")
    for row in (sums, words):
        assert row["rows_per_second"] * row["cpu_seconds"] == pytest.approx(4096, rel=0.01)
    assert sums["tokens_per_second"] == pytest.approx(32 * sums["rows_per_second"], rel=0.01)
    for row in result["loading"]:
        rate = 4 * 64 / row["milliseconds_per_batch"] * 1e3
        assert row["tokens_per_second"] == pytest.approx(rate, rel=0.1)


def test_parts_may_be_left_out_and_drawn_rows_tell_their_start(tmp_path):
    file = tmp_path / "result.json"
    words = ["data", "--parts", "rows", "--tasks", "multiplication", "--repeats", "1"]
    assert command.main([*words, "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert not {"corpus", "tokenising", "packing", "loading"} & set(result)
    (row,) = result["generating"]
    splits = tasks.create("multiplication").splits()
    rows = sum(map(len, splits.values()))
    assert row["start_seconds"] == pytest.approx(row["cpu_seconds"], abs=1e-3)
    assert row["rows_per_second"] * row["cpu_seconds"] == pytest.approx(rows, rel=0.01)


def test_stored_tokens_are_read_as_a_split(tmp_path):
    shards = data.write_tokens(tmp_path, 33)
    split = TokenSplit(tmp_path, "train", shards, data.U2, 1024, None)
    assert split.num_tokens == (33 << 20) // 2
    expected = np.random.default_rng(0).integers(0, 8000, 16 << 20, dtype=np.uint16)
    assert split.windows(np.array([5]))[0].tolist() == expected[5 * 1024 : 6 * 1024 + 1].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokenizers", "byte"], "did you mean 'bytes'"),
        (["--workers", "0"], "--workers 0: expected at least 1"),
        (["--stored", "1", "--context", "1000000"], "has no window"),
        (["--batch", "0"], "--batch 0: expected at least 1"),
    ],
)
def test_bad_option_ends_with_status_2(options, message, capsys):
    assert command.main(["data", *options]) == 2
    assert message in capsys.readouterr().err
