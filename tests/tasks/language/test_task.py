"""The task language: its options, its checks, and that it packs what a run then reads."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

import tasks
from tasks import DataDamaged, DataMissing
from tasks.base.options import parse_words
from tasks.base.task import ExampleTask
from tasks.base.text import TextTask
from tasks.language.splitting import SplitRule, digest
from tasks.language.tokenizers import Bytes

TEXTS = [f"document {i}\n" + "  indented\n" * (i % 5) for i in range(400)]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def options(tmp_path, cache) -> dict[str, object]:
    """Options of a small task over a file."""
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return {
        "corpus": "files",
        "files": [str(path)],
        "tokenizer": "bytes",
        "context_length": 16,
        "validation_fraction": 0.1,
        "test_fraction": 0.1,
    }


def test_splits_hold_the_corpus(options):
    task = tasks.create("language", **options)
    splits = task.splits()
    assert list(splits) == ["train", "validation", "test"]
    assert sum(split.num_documents for split in splits.values()) == len(TEXTS)
    assert sum(split.num_bytes for split in splits.values()) == sum(map(len, TEXTS))
    rule = SplitRule(0.1, 0.1)
    first = next(text for text in TEXTS if rule.split(None, digest(text)) == "validation")
    window = splits["validation"].windows(np.array([0]))[0]
    assert window.tolist() == [256, *first.encode()[:16]]
    assert task.splits() is splits
    assert task.kind == "language_modelling"
    assert set(task.selection_splits) == {task.in_distribution_split} == {"validation"}


def test_one_packing_serves_every_context_length(options, cache):
    tasks.create("language", **options).splits()
    index = next(cache.glob("language/files-*/prepared.json")).stat().st_mtime_ns
    longer = tasks.create("language", **{**options, "context_length": 32})
    assert longer.splits()["train"].context_length == 32
    assert next(cache.glob("language/files-*/prepared.json")).stat().st_mtime_ns == index
    assert longer.data_hash() == tasks.create("language", **options).data_hash()


@pytest.mark.parametrize(
    "change",
    [
        {"boundary": "paper"},
        {"validation_fraction": 0.2},
        {"test_fraction": 0.2},
        {"tokenizer": "bpe", "vocabulary_size": 300},
        {"train_tokens": 3500},
        {"documents": "paragraphs"},
    ],
)
def test_what_decides_the_tokens_decides_the_folder(options, change):
    base = tasks.create("language", **options)
    changed = tasks.create("language", **{**options, **change})
    assert changed.folder() != base.folder()
    # The corpus has one part, and rows of JSON, which give the same tokens.
    if not {"train_tokens", "documents"} & set(change):
        assert changed.data_hash() != base.data_hash()


def test_changed_text_is_packed_anew(options):
    before = tasks.create("language", **options).data_hash()
    with open(options["files"][0], "a") as stream:
        stream.write('{"text": "one more"}\n')
    assert tasks.create("language", **options).data_hash() != before


def test_the_same_text_elsewhere_is_the_same_data(options, tmp_path, monkeypatch):
    first = tasks.create("language", **options)
    (tmp_path / "other").mkdir()
    copy = tmp_path / "other" / "text.jsonl"
    copy.write_bytes(Path(options["files"][0]).read_bytes())
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path / "another"))
    second = tasks.create("language", **{**options, "files": [str(copy)]})
    assert second.data_hash() == first.data_hash()
    assert second.folder().name == first.folder().name


def test_bpe_is_trained_on_the_corpus(options):
    pytest.importorskip("sentencepiece")
    task = tasks.create("language", **{**options, "tokenizer": "bpe", "vocabulary_size": 300})
    tokenizer = task.load_tokenizer()
    assert (tokenizer.vocabulary_size, task.prepared().dtype) == (300, np.dtype("<u2"))
    window = task.splits()["train"].windows(np.array([1]))[0]
    assert tokenizer.decode(window.tolist()) in "".join(TEXTS)


def test_what_a_limit_keeps_from_the_tokenizer_is_counted_and_said(options, caplog):
    pytest.importorskip("sentencepiece")
    options = {**options, "tokenizer": "bpe", "vocabulary_size": 300}
    some = tasks.create("language", **options, tokenizer_documents=30)
    train = some.splits()["train"]
    total = train.num_documents + train.num_duplicates
    (said,) = [record for record in caplog.records if "has learnt from" in record.message]
    assert said.levelname == "WARNING"
    assert f"from the first 30 of {total} documents of train, " in said.message
    assert said.message.endswith(f"the limit of task.tokenizer_documents left {total - 30} unread")
    caplog.clear()
    tasks.create("language", **options).splits()  # all of them are fewer than the default
    assert "unread" not in caplog.text


def test_a_given_tokenizer_is_read_from_its_file(options, tmp_path):
    path = Bytes().save(tmp_path)
    task = tasks.create("language", **{**options, "tokenizer": str(path)})
    assert task.load_tokenizer().sha256() == Bytes().sha256()
    assert task.data_hash() == tasks.create("language", **options).data_hash()


def test_a_cut_or_changed_token_file_is_refused(options):
    task = tasks.create("language", **options)
    task.splits()
    path = task.folder() / "train/00000.tokens"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataDamaged, match=r"00000\.tokens: changed since it was prepared"):
        tasks.create("language", **options).splits()
    path.write_bytes(data[:-2])
    with pytest.raises(DataDamaged, match=r"00000\.tokens: \d+ bytes, expected \d+"):
        tasks.create("language", **options).splits()


def test_a_changed_tokenizer_of_packed_data_is_refused(options):
    pytest.importorskip("sentencepiece")
    options = {**options, "tokenizer": "bpe", "vocabulary_size": 300}
    folder = tasks.create("language", **options).prepare().folder
    other = tasks.create("language", **{**options, "vocabulary_size": 301}).prepare().folder
    path = folder / "tokenizer/tokenizer.model"
    path.write_bytes((other / "tokenizer/tokenizer.model").read_bytes())
    with pytest.raises(DataDamaged, match=r"tokenizer\.model: changed since the data was prepared"):
        tasks.create("language", **options).splits()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        DataDamaged, match=r"not a whole SentencePiece model; remove .* and prepare"
    ):
        tasks.create("language", **options).splits()


def test_the_command_that_prepares_survives_a_shell(options, tmp_path):
    (tmp_path / "it's more").mkdir()
    many = [*options["files"], str(tmp_path / "it's more")]
    for files in (options["files"], many):
        task = tasks.create("language", **{**options, "files": files})
        words = shlex.split(task.prepare_command())
        assert words[:3] == ["python", "-m", "tasks.prepare"]
        found = parse_words("language", type(task), words[3:])
        assert tasks.create("language", **found, context_length=16) == task


def test_a_hub_corpus_is_prepared_by_command_alone(cache):
    task = tasks.create("language", corpus="c4", train_tokens=1000, context_length=256)
    with pytest.raises(DataMissing) as error:
        task.splits()
    assert str(error.value).endswith(
        "prepare it with: python -m tasks.prepare corpus=c4 train_tokens=1000"
    )
    assert not cache.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpus": "stdlb"}, "task.corpus='stdlb': expected one of .*did you mean 'stdlib'"),
        ({"corpus": "stdlib"}, "task.files=.*corpus 'stdlib' does not take it"),
        ({"files": []}, "task.files=.*needs at least one file"),
        ({"validation_fraction": 0.0}, "task.validation_fraction=0.0: must be between 0 and 1"),
        ({"test_fraction": 1.5}, "task.test_fraction=1.5: must be between 0 and 1"),
        ({"test_fraction": 0.95}, "task.test_fraction=0.95: must be below 1 together with"),
        ({"context_length": 0}, "task.context_length=0: must be at least 1"),
        ({"train_tokens": 0}, "task.train_tokens=0: must be at least 1"),
        ({"normalization": "paper"}, "task.normalization='paper': only with tokenizer: bpe"),
        ({"vocabulary_size": 100}, "task.vocabulary_size=100: only with tokenizer: bpe"),
        ({"boundary": "papr"}, "task.boundary='papr': .*did you mean 'paper'"),
        ({"hub": "a/b"}, "task.hub='a/b'"),
    ],
)
def test_wrong_options_are_one_line(options, change, message):
    with pytest.raises(ValueError, match=message) as error:
        tasks.create("language", **{**options, **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_length": 5000}, "task.context_length=5000: the train split has .* tokens"),
        ({"tokenizer": "no.model"}, "task.tokenizer='no.model': .*no such file"),
        ({"files": ["/nowhere/x.txt"]}, "task.files='/nowhere/x.txt'"),
    ],
)
def test_what_cannot_be_packed_or_cut_is_one_line(options, cache, change, message):
    changed = {**options, **change}
    if "context_length" in change:
        Path(options["files"][0]).write_text('{"text": "short"}\n{"text": "shorter"}\n')
    with pytest.raises(ValueError, match=message) as error:
        tasks.create("language", **changed).splits()
    assert "\n" not in str(error.value)
    assert files_of(cache) == []


def files_of(folder: Path) -> list[Path]:
    """Return the files that hold something, and not who worked on them last."""
    return [path for path in folder.rglob("*") if path.is_file() and ".lease" not in path.parts]


def test_text_that_is_not_utf8_is_named_and_nothing_left_behind(tmp_path, cache, options):
    path = tmp_path / "bad.txt"
    path.write_bytes(b"good\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"bad\.txt.*not UTF-8") as error:
        tasks.create("language", **{**options, "files": [str(path)]}).splits()
    assert "\n" not in str(error.value)
    assert files_of(cache) == []


def test_packing_that_is_cut_short_is_said_in_one_line_with_the_command(
    options, tmp_path, monkeypatch
):
    def killed(*arguments):
        raise BrokenProcessPool

    (tmp_path / "taken").write_text("no folder")
    with monkeypatch.context() as patch:
        patch.setenv("MOEUT_CACHE", str(tmp_path / "taken"))
        with pytest.raises(DataMissing, match=r"Not a directory.*; MOEUT_CACHE=.*taken\)$"):
            tasks.create("language", **options).splits()
    with monkeypatch.context() as patch:
        patch.setattr("tasks.language.packing.pack_part", killed)
        with pytest.raises(DataMissing, match=r"a worker was killed, .* --workers") as error:
            tasks.create("language", **options).splits()
        assert "tried again with: python -m tasks.prepare corpus=files" in str(error.value)
        assert "\n" not in str(error.value)
    tasks.create("language", **options).splits()


def test_what_serves_a_shorter_window_is_kept(options, cache):
    tasks.create("language", **options).splits()
    before = files_of(cache)
    longer = tasks.create("language", **{**options, "context_length": 2000})
    for use in (longer.splits, longer.prepare):
        with pytest.raises(ValueError, match=r"another task\.validation_fraction or"):
            use()
    assert files_of(cache) == before
    assert len(before) == 2 * 3 + 3


def test_small_corpora_hold_out_more(tmp_path, cache):
    path = tmp_path / "text.txt"
    options = {"corpus": "files", "files": str(path), "tokenizer": "bytes"}

    def shares(size, **given):
        path.write_bytes(b"x" * size)
        return list(tasks.create("language", **options, **given).fractions().values())

    assert shares(1000) == [0.1, 0.1]
    assert shares(1 << 20) == [1 / 16, 1 / 16]
    assert shares(14_000_000) == [0.005, 0.005]
    assert shares(1 << 20, test_fraction=0.3) == [1 / 16, 0.3]
    assert shares(1000, validation_fraction=0.96)[1] == pytest.approx(0.02)
    assert list(tasks.create("language", corpus="c4").fractions().values()) == [0.005, 0.005]


def test_one_file_may_be_named_without_a_list(options):
    (path,) = options["files"]
    task = tasks.create("language", **{**options, "files": path})
    assert task == tasks.create("language", **options)
    for word in (path, json.dumps([path])):
        found = parse_words("language", type(task), ["corpus=files", f"files={word}"])
        assert tasks.create("language", **found).files == [path]


def test_it_is_no_task_of_examples(options):
    task = tasks.create("language", **options)
    assert isinstance(task, TextTask)
    assert not isinstance(task, ExampleTask)
    assert not hasattr(task, "vocabularies")


def test_a_result_says_how_much_text_there_is_and_which_tokenizer(options, tmp_path):
    path = tmp_path / "twice.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, *TEXTS]))
    task = tasks.create("language", **{**options, "files": [str(path)]})
    described = task.describe()
    assert (described["kind"], described["context_length"]) == ("language_modelling", 16)
    assert described["tokenizer"]["vocabulary_size"] == 257
    held_out = [described["data"][name] for name in ("validation", "test")]
    assert [data["documents"] for data in held_out] == [data["duplicates"] for data in held_out]
    train = described["data"]["train"]
    assert train["duplicates"] == 0
    assert train["documents"] + 2 * sum(data["documents"] for data in held_out) == 2 * len(TEXTS)
    assert train["tokens"] == train["bytes"] + train["documents"] + 1
    assert train["windows"] == (train["tokens"] - 1) // 16


def test_a_second_process_waits_and_reads_what_the_first_packed(options, tmp_path):
    code = (
        "import json, sys, tasks\n"
        "task = tasks.create('language', **json.loads(sys.argv[1]))\n"
        "print(task.data_hash())\n"
    )
    root = Path(tasks.__file__).parents[1]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(options)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
        )
        for _ in range(2)
    ]
    printed = [child.communicate()[0].strip() for child in children]
    assert printed[0] == printed[1] == tasks.create("language", **options).data_hash()
