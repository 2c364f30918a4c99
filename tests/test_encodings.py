"""Text files are read and written in UTF-8, whatever the locale of the machine is."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [path for folder in ("moeut", "runners", "tasks") for path in (ROOT / folder).rglob("*.py")]


def without_encoding(code: str) -> list[int]:
    """Return the lines of calls that read or write text in the encoding of the locale."""
    lines = []
    for call in ast.walk(ast.parse(code)):
        if not isinstance(call, ast.Call):
            continue
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        is_method = isinstance(call.func, ast.Attribute)
        opens = not is_method and name == "open"
        mode = keywords.get("mode", call.args[1] if opens and len(call.args) > 1 else None)
        nodes = ast.walk(mode) if mode else ()
        modes = [node.value for node in nodes if isinstance(node, ast.Constant)]
        is_text = opens and not any("b" in mode for mode in modes)
        is_text |= is_method and name in ("read_text", "write_text")
        is_text |= any(key in keywords for key in ("text", "universal_newlines")) and name in (
            *("run", "Popen", "check_output"),
        )
        if is_text and "encoding" not in keywords:
            lines.append(call.lineno)
    return lines


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("open('x')", [1]),
        ("open('x', 'rb')", []),
        ("open('x', mode='w')", [1]),
        ("open('x', encoding='utf-8')", []),
        ("path.read_text()", [1]),
        ("path.write_text(text, encoding='utf-8')", []),
        ("subprocess.run(command, text=True)", [1]),
        ("os.open('x', os.O_RDONLY)", []),
    ],
)
def test_calls_are_told_apart(code, found):
    assert without_encoding(code) == found


def test_every_file_is_opened_with_its_encoding():
    assert len(FILES) > 100
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in FILES
        for line in without_encoding(path.read_text(encoding="utf-8"))
    }
    assert found == set()
