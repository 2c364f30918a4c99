"""Streaming from the hub: against a server on this machine, from a folder, and without network."""

from __future__ import annotations

import gzip
import http.server
import json
import logging
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.language import hub
from tasks.language.corpora import open_corpus
from tasks.language.hub import HubDataset

pytest.importorskip("huggingface_hub")
pyarrow = pytest.importorskip("pyarrow")
zstandard = pytest.importorskip("zstandard")

REPOSITORY, COMMIT = "someone/something", "0123456789abcdef0123456789abcdef01234567"
TEXTS = [f"document {number}\n  é" for number in range(40)]


def rows(texts, field="text"):
    return "".join(json.dumps({"id": "x", field: text}) + "\n" for text in texts).encode()


def parquet(texts, field):
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    table = pyarrow.table({"path": ["p"] * len(texts), field: texts})
    pyarrow.parquet.write_table(table, sink, row_group_size=7)
    return sink.getvalue().to_pybytes()


class Hub(http.server.BaseHTTPRequestHandler):
    """What of the hub's API reading files needs: a revision, facts on paths, byte ranges."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    ranges: list[str]

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.split("?")[0]
        if match := re.fullmatch(rf"/api/datasets/{REPOSITORY}/revision/(\w+)", path):
            known = match.group(1) in (COMMIT, "main")
            body = {"id": REPOSITORY, "sha": COMMIT, "siblings": []}
            self.answer(200 if known else 404, json.dumps(body).encode())
            return
        if path == f"/api/datasets/{REPOSITORY}/tree/{COMMIT}":
            self.answer(200, json.dumps(self.listing(self.files)).encode())
            return
        match = re.fullmatch(rf"/datasets/{REPOSITORY}/resolve/{COMMIT}/(.+)", path)
        data = self.files.get(match.group(1)) if match else None
        if data is None:
            self.answer(404, b"", x_error_code="EntryNotFound" if match else "RepoNotFound")
        elif match := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", "")):
            self.ranges.append(match.group(0))
            first, last = int(match.group(1)), min(int(match.group(2)), len(data) - 1)
            self.answer(
                206,
                data[first : last + 1],
                content_range=f"bytes {first}-{last}/{len(data)}",
            )
        else:
            self.answer(200, data, etag=f'"{COMMIT}"', x_repo_commit=COMMIT)

    do_HEAD = do_GET

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))["paths"]
        self.answer(200, json.dumps(self.listing(asked)).encode())

    def listing(self, paths):
        return [
            {"type": "file", "path": path, "oid": COMMIT, "size": len(self.files[path])}
            for path in paths
            if path in self.files
        ]

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def endpoint():
    Hub.files = {
        "train.json.gz": gzip.compress(rows(TEXTS)),
        "train.jsonl.zst": zstandard.ZstdCompressor().compress(rows(TEXTS)),
        "train.parquet": parquet(TEXTS, "text"),
        "cut.json.gz": gzip.compress(rows(TEXTS))[:-10],
    }
    Hub.ranges = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


READ = """
import json, sys
from tasks.language.hub import HubFiles

files, revision, gated = json.loads(sys.argv[1])
answers = []
for name in files:
    corpus = HubFiles(
        "test", "someone/something", revision, [("train", name)], is_gated=gated
    )
    try:
        answers.append([document.text for document in corpus.documents()])
    except ValueError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def read(tmp_path, files, revision=COMMIT, gated=False, **environment):
    """Read files of the repository in a new process: the hub's address is fixed at import."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("HF_") and "proxy" not in name.lower()
    }
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps([files, revision, gated])],
        env={**kept, "HF_HOME": str(tmp_path / "hf"), **environment},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout)
    assert not any("\n" in answer for answer in answers if isinstance(answer, str))
    return answers


def test_files_are_streamed_from_the_hub(endpoint, tmp_path):
    names = ["train.json.gz", "train.jsonl.zst", "train.parquet", "cut.json.gz", "none.json.gz"]
    *read_whole, cut, none = read(tmp_path, names, HF_ENDPOINT=endpoint)
    assert read_whole == [TEXTS] * 3
    assert Hub.ranges, "nothing was read by ranges"
    assert cut.startswith(f"{REPOSITORY}/cut.json.gz at {COMMIT}: cannot be read (EOFError")
    assert none.startswith(f"{REPOSITORY}/none.json.gz at {COMMIT}: cannot be read (")
    # Nothing is kept.
    assert not list((tmp_path / "hf").rglob("*train*"))


def test_a_commit_that_is_not_there_is_refused(endpoint, tmp_path):
    (answer,) = read(tmp_path, ["train.json.gz"], revision="f" * 40, HF_ENDPOINT=endpoint)
    assert "cannot be read" in answer
    assert "f" * 40 in answer


def test_without_network_there_is_one_line(tmp_path):
    # Port 9 is nobody's.
    (answer,) = read(tmp_path, ["train.json.gz"], HF_ENDPOINT="http://127.0.0.1:9")
    assert "the hub cannot be reached: is there a network?" in answer


def test_offline_reads_what_the_cache_has_and_else_says_so(endpoint, tmp_path):
    folder = tmp_path / "hf" / "hub" / "datasets--someone--something" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / "train.parquet").write_bytes(parquet(TEXTS[:3], "text"))
    cached, missing = read(
        tmp_path, ["train.parquet", "train.json.gz"], HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="1"
    )
    assert cached == TEXTS[:3]
    assert "not on this machine, and HF_HUB_OFFLINE is set" in missing


def test_a_gated_repository_needs_a_token(endpoint, tmp_path):
    (refused,) = read(tmp_path, ["train.parquet"], gated=True, HF_ENDPOINT=endpoint)
    assert refused.startswith("someone/something: access is asked for at https://")
    assert refused.endswith("then set HF_TOKEN")
    (given,) = read(
        tmp_path, ["train.parquet"], gated=True, HF_ENDPOINT=endpoint, HF_TOKEN="hf_none"
    )
    assert given == TEXTS


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    folder = tmp_path / "data set"
    folder.mkdir()
    for number in range(2):
        name = folder / f"train-{number:05d}-of-00002.jsonl"
        name.write_bytes(rows(TEXTS[number * 20 : number * 20 + 20]))
    (folder / "validation.jsonl").write_bytes(rows(["held out"]))
    return folder


def test_a_folder_laid_out_like_a_repository_is_streamed_by_its_files(folder):
    corpus = open_corpus("hub", hub=str(folder))
    assert not corpus.uses_network
    parts = corpus.parts()
    assert [(part.name, part.split) for part in parts] == [
        ("train-00000-of-00002", "train"),
        ("train-00001-of-00002", "train"),
        ("validation-00000-of-00001", "validation"),
    ]
    assert [document.text for document in parts[1].documents()] == TEXTS[20:]
    assert [document.text for document in corpus.documents()] == [*TEXTS, "held out"]


def test_attempts_to_reach_the_hub_are_not_printed(folder):
    logger = logging.getLogger("huggingface_hub")
    logger.setLevel(logging.WARNING)
    HubDataset(str(folder)).parts()
    assert not logger.isEnabledFor(logging.WARNING)


def test_one_split_alone_is_left_to_be_divided(folder):
    (folder / "validation.jsonl").unlink()
    assert {part.split for part in HubDataset(str(folder)).parts()} == {None}


def test_splits_that_are_left_out_are_named(tmp_path, monkeypatch, caplog):
    splits = dict.fromkeys(("train", "unlabelled", "test"), SimpleNamespace(num_shards=1))
    monkeypatch.setattr(hub, "_streamed", lambda *source: splits)
    assert [part.split for part in HubDataset(str(tmp_path)).parts()] == ["train", "test"]
    assert caplog.messages == [f"{tmp_path}: splits passed over: unlabelled"]


def test_the_fingerprint_of_a_folder_enters_linked_folders(folder, tmp_path):
    more = tmp_path / "more"
    more.mkdir()
    (folder / "linked").symlink_to(more)
    before = HubDataset(str(folder)).fingerprint()
    (more / "test.jsonl").write_bytes(rows(["linked"]))
    after = HubDataset(str(folder)).fingerprint()
    assert (before["files"], after["files"]) == (3, 4)


def test_the_fingerprint_of_a_folder_is_of_its_content(folder):
    first = HubDataset(str(folder)).fingerprint()
    moved = folder.rename(folder.parent / "moved")
    assert HubDataset(str(moved)).fingerprint() == first
    (moved / "validation.jsonl").write_bytes(rows(["held up!"]))
    assert HubDataset(str(moved)).fingerprint()["sha256"] != first["sha256"]
    assert first["files"] == 3


def test_a_field_that_is_not_there_is_refused(folder):
    corpus = HubDataset(str(folder), text_field="txt")
    with pytest.raises(
        ValueError, match=r"text_field='txt': no such field in .* it has id, text; did you mean"
    ):
        list(corpus.documents())


def test_a_folder_without_data_is_refused(tmp_path):
    pytest.importorskip("datasets")
    with pytest.raises(ValueError, match=r"task\.hub=") as error:
        HubDataset(str(tmp_path)).parts()
    assert "\n" not in str(error.value)


def test_the_fingerprint_of_a_repository_needs_no_network():
    corpus = open_corpus("hub", hub=REPOSITORY, hub_revision=COMMIT, hub_config="en")
    assert corpus.uses_network
    assert corpus.fingerprint() == {
        "corpus": "hub",
        "repository": REPOSITORY,
        "revision": COMMIT,
        "config": "en",
        "text_field": "text",
    }
