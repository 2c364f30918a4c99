"""Text of users on one line."""

import pytest

from tasks.base.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b", "a b"),
        ("two\nlines\r\t", "two\\nlines\\r\\t"),
        ("\x1b[31mred\x00", "\\x1b[31mred\\x00"),
        ("a\u2028b\x85c", "a\\u2028b\\x85c"),
        ("lone \ud800", "lone \\ud800"),
        ("no\u00a0break, 日本語, e\u0301", "no\u00a0break, 日本語, e\u0301"),
    ],
)
def test_line_ends_and_control_characters_are_escaped(text, shown):
    assert printable(text) == shown
    assert len(shown.splitlines()) == 1
    shown.encode("utf-8")
