"""Figures that another process draws are those that this one would draw."""

import os
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


def test_another_process_draws_the_same_bytes(results, tmp_path, two_cores, monkeypatch):
    here = figures.draw_all(results, tmp_path / "here")
    monkeypatch.setattr(drawer, "WORTH_PANELS", 1)
    monkeypatch.setattr(figures, "draw", None)  # in this process nothing can be drawn
    with Drawer() as artist:
        artist.prepare()
        there = artist.begin(results, tmp_path / "there")()
    assert [path.name for path in there] == [path.name for path in here]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(here, there, strict=True))
    assert {"scipy.stats", "vl_convert"} <= set(sys.modules)


def test_few_panels_are_drawn_here(results, tmp_path, two_cores, monkeypatch):
    monkeypatch.setattr(drawer, "ProcessPoolExecutor", None)
    with Drawer() as artist:
        assert len(artist.begin(results, tmp_path)()) == 6


def test_on_one_core_nothing_is_drawn_elsewhere(results, tmp_path, monkeypatch):
    monkeypatch.setattr(drawer, "available_cores", lambda: 1)
    monkeypatch.setattr(drawer, "WORTH_PANELS", 1)
    monkeypatch.setattr(drawer, "ProcessPoolExecutor", None)
    with Drawer() as artist:
        artist.prepare()
        assert len(artist.begin(results, tmp_path)()) == 6


def test_figures_of_a_process_that_died_are_drawn_here(
    results, tmp_path, two_cores, monkeypatch, caplog
):
    monkeypatch.setattr(drawer, "WORTH_PANELS", 1)
    with Drawer() as artist:
        artist._submit(os._exit, 1)
        assert len(artist.begin(results, tmp_path)()) == 6
    assert "drawn again, here" in caplog.text


def test_without_matplotlib_nothing_begins(results, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with Drawer() as artist, pytest.raises(FiguresUnavailable, match="pip install"):
        artist.begin(results, tmp_path)
