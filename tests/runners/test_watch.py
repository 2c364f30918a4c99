"""The page of a sweep under way, served to this machine."""

import json
import threading
import urllib.error
import urllib.request

import pytest

from runners.reporting.html import live
from runners.reporting.results import load
from runners.watch import Server, main
from tasks.base.lease import Lease

pytest.importorskip("vl_convert")


@pytest.fixture
def directory(make_sweep):
    directory = make_sweep(a=[0.5, "loss is nan", None, None], b=[0.6, 0.7, None, None])
    failed = next(directory.glob("a-*/seed1"))
    (failed / "log.txt").write_text("".join(f"line {n} <b>\n" for n in range(30)))
    return directory


@pytest.fixture
def running(directory):
    """A run at step 25 of 100."""
    path = directory / json.loads((directory / "sweep.json").read_text())["runs"][2]["directory"]
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("task:\n  steps: 7\ntrain:\n  a: 1\n  steps: 100\nseed: 0\n")
    (path / "metrics.jsonl").write_text('{"step": 25, "loss": 1.5}\n{"step": 3')
    with Lease(path):
        yield path


@pytest.fixture
def ask(directory):
    """Return a function that asks the server of a sweep."""
    with Server(str(directory), 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield lambda path: urllib.request.urlopen(server.address + path, timeout=60).read().decode()
        server.shutdown()
        thread.join()


def test_the_page_and_what_it_asks_for(directory, running, ask):
    before = sorted(directory.rglob("*"))
    page = ask("")
    assert '"follow":5' in page
    assert "8 runs: 3 done, 1 failed, 1 running, 3 missing" not in page  # sorted by name
    assert "8 runs: 3 done, 1 failed, 3 missing, 1 running" in page
    state = json.loads(ask("live.json"))
    assert "25 of 100" in state["progress"]
    assert '<progress value="0.250"' in state["progress"]
    assert "line 29 &lt;b&gt;" in state["progress"]
    assert "line 21 " not in state["progress"]
    (loss,) = [c for c in state["charts"] if c["name"] == "learning-train"]
    assert [0, 2, 25, 1.5] in loss["rows"]
    # A new row shows without a new page.
    (running / "metrics.jsonl").write_text('{"step": 25, "loss": 1.5}\n{"step": 50, "loss": 1.0}\n')
    assert "50 of 100" in json.loads(ask("live.json"))["progress"]
    assert sorted(directory.rglob("*")) == before  # nothing is written


def test_time_left(directory, running):
    # Runs took 61.5 s, 61.5 s and 62.5 s; 3.75 runs are left, one at a time.
    assert live.seconds_left(load(directory)) == pytest.approx(3.75 * (61.5 * 2 + 62.5) / 3)


def test_files_that_are_half_there_are_an_answer_not_an_end(directory, ask):
    (next(directory.glob("a-*/seed0")) / "result.json").write_text("{")
    with pytest.raises(urllib.error.HTTPError) as error:
        ask("live.json")
    assert error.value.code == 503
    (next(directory.glob("a-*/seed0")) / "result.json").unlink()
    assert "progress" in ask("live.json")


def test_a_sweep_that_has_not_begun_has_a_page(make_sweep):
    page = live.live_page(load(make_sweep(a=[None])))
    assert "No run has a result yet." in page


def test_bad_input(tmp_path, directory, capsys):
    assert main([str(tmp_path / "nothing")]) == 2
    assert "no such directory" in capsys.readouterr().err
    assert main([str(directory), "--port", "99999"]) == 2
    assert "--port 99999" in capsys.readouterr().err
