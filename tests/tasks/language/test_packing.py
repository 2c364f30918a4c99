"""Packing: the same bytes for any number of workers, order of files and interruption."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tasks.language import packing
from tasks.language.corpus_files import FilePart, Slice
from tasks.language.documents import Document, Part
from tasks.language.packed_part import Recipe
from tasks.language.packing import pack
from tasks.language.prepared import read_prepared
from tasks.language.shards import ShardWriter
from tasks.language.splitting import SplitRule, digest
from tasks.language.tokenizers import Bytes
from tasks.language.windows import TokenSplit

RULE = SplitRule(validation_fraction=0.2, test_fraction=0.1)
RECIPE = Recipe(RULE, "token", "<STORY_SEP>")
NUM_PARTS = 5


@dataclass(frozen=True)
class Texts(Part):
    """Texts in memory."""

    name: str
    texts: tuple[str, ...]
    split: str | None = None

    def documents(self) -> Iterator[Document]:
        """Yield the texts."""
        for number, text in enumerate(self.texts):
            yield Document(text, f"{self.name}:{number}")


def texts_of(number: int) -> tuple[str, ...]:
    return tuple(f"text {number}.{i} {'é' * (i % 7)}" for i in range(40))


@pytest.fixture
def parts(tmp_path) -> list[Part]:
    """Parts of a corpus of real files, one JSON lines file each."""
    made: list[Part] = []
    for number in range(NUM_PARTS):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts_of(number)))
        pieces = (Slice(str(path), "JSON lines", ""),)
        made.append(FilePart(f"part-{number}", pieces))
    return made


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files of a packed corpus but the note of what was verified."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "verified.json"
    }


def stream(folder: Path, split: str) -> np.ndarray:
    """Return all tokens of a split."""
    prepared = read_prepared(folder)
    assert prepared is not None
    opened = TokenSplit(folder, split, prepared.splits[split], prepared.dtype, 1, 256)
    out = np.empty(opened.num_tokens, dtype=np.int64)
    opened.read(0, out)
    return out


def documents(folder: Path, split: str) -> list[str]:
    """Return the texts of a split, read back from its tokens."""
    ids = stream(folder, split)
    assert ids[0] == ids[-1] == 256
    pieces = np.split(ids[1:], np.flatnonzero(ids[1:] == 256) + 1)[:-1]
    return [Bytes().decode(piece.tolist()) for piece in pieces]


def by_rule(texts: list[str], split: str) -> list[str]:
    return [text for text in texts if RULE.split(None, digest(text)) == split]


def test_every_document_is_in_the_split_its_hash_says_in_order(tmp_path, parts):
    folder = tmp_path / "packed"
    prepared = pack(folder, parts, Bytes(), RECIPE, workers=1)
    every = [text for number in range(NUM_PARTS) for text in texts_of(number)]
    for split in ("train", "validation", "test"):
        expected = by_rule(every, split)
        assert documents(folder, split) == expected
        shards = prepared.splits[split]
        assert sum(shard.documents for shard in shards) == len(expected) > 5
        assert sum(shard.bytes for shard in shards) == sum(len(t.encode()) for t in expected)
        assert sum(shard.tokens for shard in shards) == len(stream(folder, split))
    assert prepared.duplicates == {"train": 0, "validation": 0, "test": 0}
    assert (prepared.num_parts, prepared.of_parts) == (NUM_PARTS, NUM_PARTS)


def test_the_split_depends_neither_on_order_nor_on_parts(tmp_path):
    every = [text for number in range(NUM_PARTS) for text in texts_of(number)]
    one = [Texts("all", tuple(every))]
    many = [Texts(str(i), tuple(every[::-1][i::7])) for i in range(7)]
    pack(tmp_path / "one", one, Bytes(), RECIPE, workers=1)
    pack(tmp_path / "many", many, Bytes(), RECIPE, workers=1)
    for split in ("train", "validation", "test"):
        assert documents(tmp_path / "one", split) != documents(tmp_path / "many", split)
        assert set(documents(tmp_path / "one", split)) == set(documents(tmp_path / "many", split))


def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path, parts):
    pack(tmp_path / "one", parts, Bytes(), RECIPE, workers=1)
    pack(tmp_path / "three", parts, Bytes(), RECIPE, workers=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert len(contents(tmp_path / "one")) == 2 * (NUM_PARTS + 2) + 2


SLOW = """
import sys, time
from pathlib import Path
from tasks.language import packed_part, packing
from tests_parts import parts, RECIPE, Bytes

finished = packed_part.write_json
def write_json(path, content):
    finished(path, content)
    print(path.name, flush=True)
    time.sleep(0.2)
packed_part.write_json = write_json
packing.pack(Path(sys.argv[1]), parts(), Bytes(), RECIPE, workers=1)
"""


@pytest.mark.parametrize("after", [1, 3])
def test_killed_and_resumed_gives_the_same_bytes(tmp_path, parts, after):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    pack(undisturbed, parts, Bytes(), RECIPE, workers=1)
    (tmp_path / "parts.pickle").write_bytes(pickle.dumps(parts))
    (tmp_path / "tests_parts.py").write_text(
        "import pickle\nfrom tasks.language.packed_part import Recipe\n"
        "from tasks.language.splitting import SplitRule\n"
        "from tasks.language.tokenizers import Bytes\n"
        "RECIPE = Recipe(SplitRule(0.2, 0.1), 'token', '<STORY_SEP>')\n"
        f"def parts():\n    return pickle.load(open({str(tmp_path / 'parts.pickle')!r}, 'rb'))\n"
    )
    root = Path(packing.__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(killed)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"},
    )
    assert child.stdout is not None
    for _ in range(after):
        assert child.stdout.readline().endswith(".json\n")
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert read_prepared(killed) is None
    recorded = sorted(path.name for path in (killed / "parts").glob("0*.json"))
    assert recorded == [f"{number:05d}.json" for number in range(after)]
    # What was half written when the process died, and a shard that was cut short since.
    (killed / "train" / ".00004.tokens.1").write_bytes(b"half")
    os.truncate(killed / "train/00000.tokens", 4)
    times = {path: path.stat().st_mtime_ns for path in (killed / "train").glob("0*.tokens")}
    pack(killed, parts, Bytes(), RECIPE, workers=1)
    assert contents(killed) == contents(undisturbed)
    kept = [path.name for path, time in times.items() if path.stat().st_mtime_ns == time]
    assert sorted(kept) == [f"{number:05d}.tokens" for number in range(1, after)]


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, parts, monkeypatch):
    folder = tmp_path / "packed"
    written = ShardWriter._write
    count = 0

    def write(self, ids):
        nonlocal count
        count += 1
        if count > 60:
            raise OSError(errno.ENOSPC, "No space left on device")
        written(self, ids)

    monkeypatch.setattr(ShardWriter, "_write", write)
    with pytest.raises(OSError, match="the disk is full; what is packed is kept") as error:
        pack(folder, parts, Bytes(), RECIPE, workers=1)
    assert error.value.errno == errno.ENOSPC
    assert "\n" not in str(error.value)
    assert read_prepared(folder) is None
    monkeypatch.undo()
    kept = (folder / "train/00000.tokens").stat().st_mtime_ns
    pack(folder, parts, Bytes(), RECIPE, workers=1)
    assert (folder / "train/00000.tokens").stat().st_mtime_ns == kept
    pack(tmp_path / "other", parts, Bytes(), RECIPE, workers=1)
    assert contents(folder) == contents(tmp_path / "other")


@pytest.mark.parametrize("workers", [1, 3])
def test_train_tokens_takes_the_shortest_run_of_parts(tmp_path, parts, workers):
    whole = pack(tmp_path / "whole", parts, Bytes(), RECIPE, workers=1)
    sizes = [shard.tokens for shard in whole.splits["train"]]
    enough = Recipe(RULE, "token", "", train_tokens=sizes[0] + sizes[1])
    two = pack(tmp_path / "two", parts, Bytes(), enough, workers=workers)
    assert [shard.tokens for shard in two.splits["train"]] == sizes[:2]
    assert two.num_parts == 2
    assert documents(tmp_path / "two", "test") == by_rule([*texts_of(0), *texts_of(1)], "test")
    assert len(list((tmp_path / "two/train").iterdir())) == 4  # nothing of parts packed ahead
    more = Recipe(RULE, "token", "", train_tokens=sizes[0] + sizes[1] + 1)
    assert pack(tmp_path / "three", parts, Bytes(), more, workers=1).num_parts == 3
    rest = Recipe(RULE, "token", "", train_tokens=10**9)
    assert pack(tmp_path / "rest", parts, Bytes(), rest, workers=1).num_parts == NUM_PARTS


def test_duplicates_across_and_within_held_out_splits_of_upstream(tmp_path, caplog):
    texts = [f"held out {i}" for i in range(30)]
    rule = SplitRule(0.2, 0.1, frozenset({"train", "validation"}))
    made = [
        Texts("train-0", ("a", texts[3], "b", texts[4], "a"), "train"),
        Texts("validation-0", (*texts, texts[0]), "validation"),
        Texts("train-1", (texts[3], "c"), "train"),
    ]
    with caplog.at_level(logging.INFO, logger="tasks"):
        prepared = pack(tmp_path / "packed", made, Bytes(), Recipe(rule, "token", ""), workers=1)
    assert "train 4 documents (3 duplicates dropped)" in caplog.text
    found = {split: documents(tmp_path / "packed", split) for split in prepared.splits}
    assert found["train"] == ["a", "b", "a", "c"]
    assert sorted(found["validation"] + found["test"]) == sorted(texts)
    assert found["validation"]
    assert found["test"]
    assert prepared.duplicates["train"] == 3
    assert prepared.duplicates["validation"] + prepared.duplicates["test"] == 1


def test_a_text_in_both_held_out_splits_is_kept_in_test(tmp_path):
    rule = SplitRule(0.2, 0.1, frozenset({"train", "validation", "test"}))
    made = [
        Texts("validation", ("v", "both"), "validation"),
        Texts("train", ("t", "v"), "train"),
        Texts("test", ("both",), "test"),
    ]
    prepared = pack(tmp_path / "packed", made, Bytes(), Recipe(rule, "token", ""), workers=1)
    found = {split: documents(tmp_path / "packed", split) for split in prepared.splits}
    assert found == {"train": ["t"], "validation": ["v"], "test": ["both"]}
    assert prepared.duplicates == {"train": 1, "validation": 1, "test": 0}


def test_duplicates_where_the_hash_decides_are_dropped_from_held_out_splits(tmp_path):
    held = next(f"t{i}" for i in range(99) if RULE.split(None, digest(f"t{i}")) == "test")
    train = next(f"t{i}" for i in range(99) if RULE.split(None, digest(f"t{i}")) == "train")
    made = [Texts("a", (held, train, held)), Texts("b", (train, held))]
    prepared = pack(tmp_path / "packed", made, Bytes(), RECIPE, workers=1)
    assert documents(tmp_path / "packed", "test") == [held]
    assert documents(tmp_path / "packed", "train") == [train, train]
    assert prepared.duplicates == {"train": 0, "validation": 0, "test": 2}


def test_another_tokenizer_packs_anew(tmp_path, parts):
    class Shifted(Bytes):
        def sha256(self) -> str:
            return hashlib.sha256(b"another").hexdigest()

    folder = tmp_path / "packed"
    pack(folder, parts, Bytes(), RECIPE, workers=1)
    prepared = (folder / "prepared.json").read_bytes()
    shutil.rmtree(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing._Packer, "_finish", lambda self, chosen: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pack(folder, parts, Bytes(), RECIPE, workers=1)
    records = sorted((folder / "parts").glob("*.json"))
    assert len(records) == NUM_PARTS
    for path in records:
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "tokenizer": Shifted().sha256()}))
    before = (folder / "train/00000.tokens").stat().st_mtime_ns
    pack(folder, parts, Bytes(), RECIPE, workers=1)
    assert (folder / "train/00000.tokens").stat().st_mtime_ns > before
    assert (folder / "prepared.json").read_bytes() == prepared


def test_no_documents_is_an_error_and_nothing_counts_as_prepared(tmp_path):
    with pytest.raises(ValueError, match="the corpus is empty"):
        pack(tmp_path / "packed", [Texts("a", ())], Bytes(), RECIPE, workers=1)
    assert read_prepared(tmp_path / "packed") is None
