"""Figures that another process draws are those that this one would draw."""

import pickle
import subprocess
import sys

import pytest

from runners.reporting import drawer, figures
from runners.reporting.drawer import Drawer
from runners.reporting.figures import FiguresUnavailable
from runners.reporting.results import load


@pytest.fixture
def results(make_sweep):
    return load(make_sweep(a=[0.4, 0.6], b=[0.5]))


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(drawer, "available_cores", lambda: 2)
    monkeypatch.setattr(drawer, "WORTH_PANELS", 1)


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_another_process_draws_the_same_bytes(results, tmp_path, two_cores, monkeypatch):
    figures.draw_all(results, tmp_path / "here")
    monkeypatch.setattr(figures, "draw", None)  # in this process nothing can be drawn
    with Drawer() as artist:
        artist.prepare()
        artist.begin(results, tmp_path / "there")()
    assert len(files(tmp_path / "here")) == 6
    assert files(tmp_path / "there") == files(tmp_path / "here")
    assert {"scipy.stats", "vl_convert"} <= set(sys.modules)


@pytest.mark.parametrize(("cores", "worth"), [(2, 5), (1, 1)])
def test_few_panels_or_on_one_core_are_drawn_here(results, tmp_path, cores, worth, monkeypatch):
    monkeypatch.setattr(drawer, "available_cores", lambda: cores)
    monkeypatch.setattr(drawer, "WORTH_PANELS", worth)
    monkeypatch.setattr(drawer, "_start", None)
    with Drawer() as artist:
        artist.begin(results, tmp_path / "figures")()
    assert len(files(tmp_path / "figures")) == 6


def test_figures_of_a_process_that_died_are_drawn_here(
    results, tmp_path, two_cores, monkeypatch, caplog
):
    dead = [sys.executable, "-c", "import os; os._exit(3)"]
    monkeypatch.setattr(drawer, "_start", lambda: subprocess.Popen(dead, stdin=subprocess.PIPE))
    with Drawer() as artist:
        artist.begin(results, tmp_path / "figures")()
    assert len(files(tmp_path / "figures")) == 6
    assert "has ended with status 3" in caplog.text


def test_a_drawer_that_is_asked_for_nothing_ends(two_cores):
    with Drawer() as artist:
        artist.prepare()
        process = artist._process
        artist.prepare()
        assert artist._process is process
    assert process.poll() is not None


def test_without_orders_nothing_is_drawn(tmp_path):
    (tmp_path / "orders").write_bytes(b"")
    with (tmp_path / "orders").open("rb") as orders:
        drawer.draw(orders)
    (tmp_path / "orders").write_bytes(pickle.dumps(({}, tmp_path / "figures")))
    with (tmp_path / "orders").open("rb") as orders:
        drawer.draw(orders)
    assert files(tmp_path / "figures") == {}


def test_without_matplotlib_nothing_begins(results, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with Drawer() as artist, pytest.raises(FiguresUnavailable, match="pip install"):
        artist.begin(results, tmp_path)
