"""Fetching from a server on this machine: what is kept, what is refused, what goes on."""

from __future__ import annotations

import http.server
import io
import tarfile
import threading
import zipfile

import pytest
from rich.console import Console

from tasks import fetch
from tasks.base import command_line, data_files
from tasks.base.data_files import DataFile
from tasks.base.storage import sha256_of

CONTENT = bytes(range(256)) * 1000


class Server(http.server.ThreadingHTTPServer):
    """Answers from a table of path → content, with faults on request, and logs what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.table: dict[str, bytes] = {}
        self.cut_after: int | None = None
        """Close the connection after so many bytes, once."""
        self.understands_ranges = True
        self.asked: list[tuple[str, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        content = self.server.table.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = 0
        if wanted and self.server.understands_ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content)
        if self.server.cut_after is not None:
            end, self.server.cut_after = start + self.server.cut_after, None
        self.wfile.write(content[start:end])

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.delenv("MOEUT_DATA", raising=False)
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(server, monkeypatch):
    entry = DataFile("toy/rows.txt", f"{server.address}/rows.txt", sha256_of(CONTENT))
    monkeypatch.setitem(fetch.COLLECTIONS, "toy", (entry,))
    server.table["/rows.txt"] = CONTENT
    return entry


def everything_under(folder) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_fetched_file_is_whole_and_not_fetched_twice(server, cache, file):
    fetch.main(["toy"])
    assert data_files.read_bytes(file) == CONTENT
    assert everything_under(cache) == ["toy/rows.txt"]
    assert len(server.asked) == 1
    fetch.main(["toy"])
    assert len(server.asked) == 1


def test_damaged_copy_in_the_cache_is_replaced(server, cache, file):
    (cache / "toy").mkdir(parents=True)
    (cache / "toy/rows.txt").write_bytes(b"other")
    with pytest.raises(data_files.DataDamaged):
        data_files.read_bytes(file)
    fetch.main(["toy"])
    assert data_files.read_bytes(file) == CONTENT


def test_damaged_content_is_refused_and_nothing_is_left(server, cache, file):
    server.table["/rows.txt"] = CONTENT[:-1] + b"!"
    with pytest.raises(fetch.FetchError, match=r"rows.txt: damaged: SHA-256 .* expected"):
        fetch.main(["toy"])
    assert everything_under(cache) == []


def test_missing_page_is_one_line(server, cache, file):
    del server.table["/rows.txt"]
    with pytest.raises(fetch.FetchError, match=r"rows.txt: the server answered 404") as error:
        fetch.main(["toy"])
    assert "\n" not in str(error.value)
    assert everything_under(cache) == []


@pytest.mark.parametrize("understands_ranges", [True, False])
def test_interrupted_download_goes_on(server, cache, file, understands_ranges):
    server.cut_after = 100_000
    server.understands_ranges = understands_ranges
    with pytest.raises(fetch.FetchError, match="connection lost"):
        fetch.main(["toy"])
    assert everything_under(cache) == ["toy/rows.txt.part"]
    assert (cache / "toy/rows.txt.part").stat().st_size == 100_000
    fetch.main(["toy"])
    assert data_files.read_bytes(file) == CONTENT
    assert everything_under(cache) == ["toy/rows.txt"]
    assert server.asked[-1] == ("/rows.txt", "bytes=100000-")


def test_partial_file_that_is_something_else_is_thrown_away(server, cache, file):
    (cache / "toy").mkdir(parents=True)
    (cache / "toy/rows.txt.part").write_bytes(b"the start of another file")
    fetch.main(["toy"])
    assert data_files.read_bytes(file) == CONTENT


def test_partial_file_that_is_whole_or_too_long(server, cache, file):
    for extra in (b"", b"more"):
        (cache / "toy").mkdir(parents=True, exist_ok=True)
        (cache / "toy/rows.txt").unlink(missing_ok=True)
        (cache / "toy/rows.txt.part").write_bytes(CONTENT + extra)
        fetch.main(["toy"])
        assert data_files.read_bytes(file) == CONTENT


def test_mirror_has_the_same_paths(server, cache, file):
    server.table = {"/data/toy/rows.txt": CONTENT}
    fetch.main(["toy", "--from", f"{server.address}/data/"])
    assert data_files.read_bytes(file) == CONTENT
    assert server.asked == [("/data/toy/rows.txt", None)]


def test_files_before_the_one_that_fails_are_kept(server, cache, file, monkeypatch):
    second = DataFile("toy/second.txt", f"{server.address}/second.txt", sha256_of(b"2"))
    monkeypatch.setitem(fetch.COLLECTIONS, "toy", (file, second))
    with pytest.raises(fetch.FetchError, match=r"second\.txt: the server answered 404"):
        fetch.main(["toy"])
    assert everything_under(cache) == ["toy/rows.txt"]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:9", "no connection"),
        ("nonsense", "not an address"),
    ],
)
def test_without_network_the_command_ends_with_one_line_and_status_2(
    cache, file, capsys, address, message
):
    with pytest.raises(SystemExit) as end:
        command_line.run(lambda: fetch.main(["toy", "--from", address]))
    assert end.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert address in lines[0]
    assert message in lines[0]


def test_cache_that_cannot_be_written_ends_with_status_2(tmp_path, monkeypatch, file, capsys):
    monkeypatch.delenv("MOEUT_DATA", raising=False)
    (tmp_path / "occupied").write_text("a file where the folder should be")
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path / "occupied"))
    with pytest.raises(SystemExit) as end:
        command_line.run(lambda: fetch.main(["toy"]))
    assert end.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_file_in_the_data_folder_is_not_fetched(server, cache, file, tmp_path, monkeypatch):
    (tmp_path / "data/toy").mkdir(parents=True)
    (tmp_path / "data/toy/rows.txt").write_bytes(CONTENT)
    monkeypatch.setenv("MOEUT_DATA", str(tmp_path / "data"))
    assert fetch.fetch([file], None, Console(quiet=True)) == 0
    assert server.asked == []


def archived(kind: str, members: dict[str, bytes]) -> bytes:
    """Return a zip or tar.gz archive of some files."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for name, content in members.items():
                header = tarfile.TarInfo(name)
                header.size = len(content)
                archive.addfile(header, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(params=["zip", "tar.gz"])
def archive(request, server, monkeypatch):
    """Return two files out of one archive on the server."""
    content = archived(request.param, {"inner/a.txt": b"a", "inner/b.txt": CONTENT, "c.txt": b"c"})
    path = f"/rows.{request.param}"
    server.table[path] = content
    whole = DataFile(f"toy{path}", server.address + path, sha256_of(content))
    entries = tuple(
        DataFile(f"toy/{name}.txt", whole.url, None, archive=whole, member=f"inner/{name}.txt")
        for name in ("a", "b")
    )
    monkeypatch.setitem(fetch.COLLECTIONS, "toy", entries)
    return entries


def test_files_of_an_archive_are_taken_out_of_it_and_it_is_not_kept(server, cache, archive):
    fetch.main(["toy"])
    noted = ["toy/a.txt.sha256", "toy/b.txt.sha256"]
    assert everything_under(cache) == sorted(["toy/a.txt", "toy/b.txt", *noted])
    assert (cache / noted[0]).read_text() == f"{sha256_of(b'a')}  a.txt\n"
    assert data_files.read_bytes(archive[0]) == b"a"
    assert data_files.read_bytes(archive[1]) == CONTENT
    assert len(server.asked) == 1
    fetch.main(["toy"])
    assert len(server.asked) == 1


def test_a_file_of_an_archive_that_changes_later_is_refused_and_fetched_again(
    server, cache, archive
):
    fetch.main(["toy"])
    (cache / "toy/b.txt").write_bytes(b"other")
    with pytest.raises(data_files.DataDamaged, match=r"b\.txt: damaged: .* fetch it again"):
        data_files.read_bytes(archive[1])
    fetch.main(["toy"])
    assert len(server.asked) == 2
    assert data_files.read_bytes(archive[1]) == CONTENT


def test_damaged_archive_is_refused_and_nothing_is_left(server, cache, archive):
    (path,) = server.table
    server.table[path] = server.table[path][:-1] + b"!"
    with pytest.raises(fetch.FetchError, match=r"damaged: SHA-256 .* expected"):
        fetch.main(["toy"])
    assert everything_under(cache) == []


def test_archive_without_the_file_is_one_line(server, cache, archive, monkeypatch):
    wrong = DataFile("toy/x.txt", archive[0].url, None, archive=archive[0].archive, member="x.txt")
    monkeypatch.setitem(fetch.COLLECTIONS, "toy", (wrong,))
    with pytest.raises(fetch.FetchError, match=r"no x\.txt inside that can be read") as error:
        fetch.main(["toy"])
    assert "\n" not in str(error.value)
    assert not (cache / "toy/x.txt").exists()


def test_archive_comes_from_the_mirror_too(server, cache, archive):
    (path,) = list(server.table)
    server.table = {f"/data/toy{path}": server.table[path]}
    fetch.main(["toy", "--from", f"{server.address}/data"])
    assert data_files.read_bytes(archive[1]) == CONTENT


def test_benchmarks_can_be_fetched():
    assert len(fetch.choose(["blimp"])) == 67
    assert [file.path for file in fetch.choose(["piqa", "lambada"])] == [
        "piqa/valid.jsonl",
        "piqa/valid-labels.lst",
        "lambada/lambada_test.jsonl",
    ]
    assert len({file.archive for file in fetch.choose(["cbt"])}) == 1


def test_names_choose_files():
    assert len(fetch.choose(["scan"])) == 4
    assert {file.path for file in fetch.choose(["cogs"])} == {
        f"cogs/{name}.tsv" for name in ("train", "dev", "test", "gen")
    }
    assert len(fetch.choose(["scan/template_split/", "scan/template_split"])) == 8
    assert [f.path for f in fetch.choose(["scan/tasks.txt"])] == ["scan/tasks.txt"]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("cosg", "cogs"), ("scan/tempate_split", "scan/template_split"), ("scan/task.txt", "scan/t")],
)
def test_unknown_name_is_refused_with_the_nearest_match(name, nearest):
    with pytest.raises(ValueError, match=f"expected scan or cogs.*did you mean '{nearest}"):
        fetch.choose([name])


def test_every_address_is_pinned_to_a_commit():
    for collection, entries in fetch.COLLECTIONS.items():
        for entry in entries:
            assert entry.path.startswith(f"{collection}/")
            if "githubusercontent" in entry.url:
                assert len(entry.url.split("/")[5]) == 40
            published = entry.archive or entry
            assert published.checksum is not None
            assert len(published.checksum.split()[-1]) in (40, 64)


def test_a_file_known_by_its_name_in_git_is_checked_by_it(server, cache, monkeypatch):
    # As ``git hash-object`` prints it.
    entry = DataFile(
        "toy/hello.txt",
        f"{server.address}/hello.txt",
        None,
        git_sha1="ce013625030ba8dba906f756967f9e9ca394464a",
    )
    monkeypatch.setitem(fetch.COLLECTIONS, "toy", (entry,))
    server.table["/hello.txt"] = b"hullo\n"
    with pytest.raises(
        fetch.FetchError, match=r"damaged: Git SHA-1 .* expected Git SHA-1 ce013625"
    ):
        fetch.main(["toy"])
    server.table["/hello.txt"] = b"hello\n"
    fetch.main(["toy"])
    assert data_files.read_bytes(entry) == b"hello\n"
    assert fetch.is_present(entry)
