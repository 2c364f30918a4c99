"""Lines on a long drawing of rows."""

from __future__ import annotations

from tasks.base import drawing
from tasks.base.drawing import Drawing


def test_a_line_every_few_seconds_says_how_long_it_still_takes(monkeypatch, capsys):
    seconds = iter([0.0, *(3.0 * n for n in range(1, 9))])
    monkeypatch.setattr(drawing.time, "monotonic", lambda: next(seconds))
    progress = Drawing("toy, train", 4 * drawing.LOOK * 2)
    for _ in range(4 * drawing.LOOK * 2):
        progress.add()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "toy, train: 4,096 of 8,192 rows drawn, 12 s left",
        "toy, train: 8,192 of 8,192 rows drawn, 0 s left",
    ]


def test_a_short_drawing_says_nothing(capsys):
    progress = Drawing("toy, train", 2000)
    for _ in range(2000):
        progress.add()
    assert capsys.readouterr().err == ""
