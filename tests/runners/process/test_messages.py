"""Messages arrive as what they were sent."""

import math

import pytest

from runners.process.messages import (
    Ended,
    Notice,
    Ready,
    ScoringProgress,
    Started,
    TrainingProgress,
    decode,
    encode,
)


@pytest.mark.parametrize(
    "message",
    [
        TrainingProgress(step=3, steps=9, loss=0.1, tokens_per_second=1e6),
        ScoringProgress(split="gen", step=9, steps=9, rows=1, of_rows=2),
        Notice("a\nb é"),
        Ready(),
        Started(),
        Ended("done"),
        Ended("failed", "step 3: loss nan"),
    ],
)
def test_message_is_one_line_and_comes_back(message):
    line = encode(message)
    assert line.count(b"\n") == 1
    assert decode(line) == message


def test_loss_that_is_no_number_comes_back():
    sent = TrainingProgress(step=1, steps=1, loss=math.nan, tokens_per_second=1.0)
    assert math.isnan(decode(encode(sent)).loss)


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b"{}", b'{"kind": "nonsense"}', b'{"kind": "notice"}']
)
def test_other_lines_are_refused(line):
    with pytest.raises(ValueError, match="not a message"):
        decode(line)
