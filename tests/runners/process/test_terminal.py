"""Times in words, and bad input in one line."""

import pytest

from runners.process.terminal import bad_input_in_one_line, duration


def test_duration():
    assert [duration(s) for s in (0.4, 59.6, 200, 7500)] == [
        "0 s",
        "1 min 00 s",
        "3 min 20 s",
        "2 h 05 min",
    ]


@pytest.mark.parametrize("kind", [ValueError, OSError])
def test_bad_input_is_one_line(kind, capsys):
    @bad_input_in_one_line
    def main(arguments):
        raise kind(f"{arguments}:\n  wrong")

    assert main("x") == 2
    assert capsys.readouterr().err == "x: wrong\n"


@pytest.mark.parametrize("kind", [BrokenPipeError, RuntimeError])
def test_other_errors_come_through(kind):
    @bad_input_in_one_line
    def main():
        raise kind

    with pytest.raises(kind):
        main()
