"""A live table on a terminal, plain lines in a log."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from runners.process.messages import Ended, Notice, ScoringProgress, Started, TrainingProgress
from runners.sweeping import progress
from runners.sweeping.progress import Display

ONE, TWO = Path("one"), Path("two")
LABELS = {ONE: "transformer seed 0", TWO: "universal seed 0"}


def message(step):
    return TrainingProgress(step=step, steps=100, loss=1.25, tokens_per_second=12345.6)


def play(display):
    display.on_message(ONE, Started())
    display.on_message(ONE, message(1))
    display.on_message(ONE, message(51))
    display.on_message(ONE, Ended("done"))
    display.on_message(TWO, Started())
    display.on_message(TWO, Ended("failed", "step 3: loss nan"))


def test_log_has_plain_lines(monkeypatch):
    clock = iter(range(31, 1000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    text = io.StringIO()
    with Display(LABELS, Console(file=text, width=100), 1) as display:
        play(display)
    lines = text.getvalue().splitlines()
    assert lines[0] == "transformer seed 0: started"
    assert "1/100  loss 1.2500  12,346 tokens/s" in lines[1]
    assert "51/100" not in text.getvalue()  # too soon after the line before
    assert "transformer seed 0: done after" in lines[2]
    assert "[1/2 runs, about" in lines[2]
    assert "universal seed 0: failed after" in lines[4]
    assert "step 3: loss nan" in lines[4]
    assert "\x1b" not in text.getvalue()


def test_terminal_has_a_live_table():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80, color_system=None)
    with Display(LABELS, console, 1) as display:
        display.on_message(ONE, Started())
        display.on_message(ONE, message(51))
        display._live.refresh()
        shown = text.getvalue()
        display.on_message(ONE, Ended("done"))
    assert "transformer seed 0" in shown  # not cut at 80 columns
    assert "51/100" in shown
    assert "[0/2 runs]" in shown


def test_scoring_is_shown_by_its_rows():
    output = io.StringIO()
    display = Display(LABELS, Console(file=output, width=200), 1)
    display.on_message(ONE, Started())
    display.on_message(ONE, ScoringProgress(split="gen", step=9, steps=9, rows=5, of_rows=8))
    assert output.getvalue().splitlines()[-1].endswith("9/9  score gen  5/8 rows")


def test_time_left_of_a_run_and_of_the_sweep(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    display = Display(
        LABELS | {Path("three"): "x", Path("four"): "y"}, Console(file=io.StringIO()), 2
    )
    display.on_message(ONE, Started())
    display.on_message(ONE, message(10))
    assert display.seconds_left() is None
    now[0] = 20.0
    display.on_message(ONE, message(50))
    assert display._rows[ONE].left == pytest.approx(25.0)  # 40 steps in 20 s, 50 to go
    now[0] = 40.0
    display.on_message(ONE, Ended("done"))
    display.on_message(TWO, Started())
    now[0] = 50.0
    # 40 s a run: 30 s left of one, two more wait; two at a time
    assert display.seconds_left() == pytest.approx((30 + 80) / 2)


def test_notice_about_a_run_is_a_line_of_its_own():
    output = io.StringIO()
    display = Display(LABELS, Console(file=output, width=200), 1)
    display.on_message(ONE, Started())
    display.on_message(ONE, Notice("step_000005: damaged"))
    assert output.getvalue().splitlines()[-1] == f"{LABELS[ONE]}: step_000005: damaged"


def test_notice_about_the_sweep_names_no_run():
    output = io.StringIO()
    display = Display(LABELS, Console(file=output, width=200), 1)
    display.on_message(Path("sweep"), Notice("2 runs submitted as job 5"))
    assert output.getvalue() == "2 runs submitted as job 5\n"


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_text_of_users_is_shown_whole_and_as_it_is(width, is_terminal):
    label = "transformer files=[a-m]*.txt name=[/x] :cat: seed 0"
    text = io.StringIO()
    console = Console(file=text, force_terminal=is_terminal, width=width, color_system=None)
    with Display({ONE: label}, console, 1) as display:
        display.on_message(ONE, Started())
        display.on_message(ONE, message(51))
        if is_terminal:
            display._live.refresh()
            shown = " ".join(text.getvalue().split())
            assert label in shown
            assert "51/100" in shown
            assert "loss 1.2500" in shown
            assert "12,346 tokens/s" in shown
        display.on_message(ONE, Ended("failed", "[bold]no[/x]"))
    assert f"{label}: failed after 0 s: [bold]no[/x]" in text.getvalue()


def test_runs_below_the_last_line_of_the_terminal_are_counted():
    labels = {Path(f"{n}"): f"run {n}" for n in range(30)}
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80, height=12, color_system=None)
    with Display(labels, console, 30) as display:
        for path in labels:
            display.on_message(path, Started())
        text.truncate(0)
        text.seek(0)
        display._live.refresh()
        shown = text.getvalue()
    assert "run 9" in shown
    assert "run 10" not in shown
    assert "and 20 more at work" in shown
    assert "…" not in shown
