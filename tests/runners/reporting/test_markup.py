r"""Every character stands for itself, wherever in Markdown or LaTeX it is put."""

import re
import shutil
import subprocess

import pytest

from runners.reporting.markup import (
    escape_latex,
    escape_markdown,
    latex_label,
    latex_row,
    markdown_heading,
    markdown_line,
)
from runners.reporting.tables import Table, to_latex, to_markdown

HOSTILE = [
    "[np]",
    "*",
    "*starred*",
    "two\nlines",
    "a | b",
    "",
    "\\",
    "\\\\[2pt]",
    "50 % & $x_1^2$ #~{}",
    "<b>--`code`</b>",
    "??`''\"",
    "日本語 \u2028 é ł ð \x00",
    "\\end{tabular}",
    "  [indented]",
]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain, a_b, 2 * 3, [0.1, 0.2], <0.001, 0.5*", None),
        ("*a*", r"\*a*"),
        ("__init__", r"\_\_init__"),
        ("a|b", r"a\|b"),
        (r"a\|b", r"a\\\|b"),
        ("a\\", "a\\\\"),
        ("C:\\new", "C:\\new"),
        ("`x` $y$", r"\`x\` \$y\$"),
        ("<b>&amp;</b>", r"\<b>\&amp;\</b>"),
        ("[a](b)[c]", r"[a]\(b)[c]"),
        ("~~gone~~", r"\~~gone\~~"),
        ("two\nlines", r"two\nlines"),
    ],
)
def test_markdown(text, escaped):
    assert escape_markdown(text) == (text if escaped is None else escaped)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("* the depth", r"\* the depth"),
        ("- x", r"\- x"),
        ("# x", r"\# x"),
        ("12. x", r"12\. x"),
        ("1) x", r"1\) x"),
        ("1.5 x", "1.5 x"),
        ("*a*", r"\*a*"),
        ("gen: 100 of 200", "gen: 100 of 200"),
        ("", ""),
    ],
)
def test_markdown_at_the_start_of_a_line(text, line):
    assert markdown_line(text) == line


def test_headings_keep_their_number_signs():
    assert markdown_heading("by C#") == r"by C\#"
    assert markdown_heading("by a ##") == r"by a \##"


def table_of(names):
    return Table(
        name="cats_[1]#%-日",
        title="*by* [category]\n#",
        columns=["[category]", "rows"],
        rows=[[name, str(number)] for number, name in enumerate(names)],
        bold=frozenset({(0, 0), (2, 1)}),
        notes=["* starred.", "[note]\nof two lines."],
    )


def test_every_row_of_a_markdown_table_is_one_line_with_its_cells():
    lines = to_markdown(table_of(HOSTILE)).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + len(HOSTILE)
    for row in rows:
        # Every second backslash is one that is shown, and escapes nothing.
        assert len(re.findall(r"(?:\\.|[^|\\])+|\|", row)) == 5
    assert lines[-2:] == [r"- \* starred.", r"- [note]\nof two lines."]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("--x---", "-{}-x-{}-{}-"),
        ("``x''", "`{}`x'{}'"),
        ("?`!`", "?{}`!{}`"),
        ("é ß Å", "é ß Å"),
        ("日", r"\anychar{日}{U+65E5}"),
        ("a\nb\x00", r"a\textbackslash{}nb\textbackslash{}x00"),
        ("≤ …", r"$\leq$ \ldots{}"),
    ],
)
def test_latex(text, escaped):
    assert escape_latex(text) == escaped


def test_rows_that_begin_like_an_argument():
    assert latex_row(["[np]", "1"]) == r"{}[np] & 1 \\"
    assert latex_row([" *", "1"]) == r"{} * & 1 \\"
    assert latex_row(["np [x]", "*"]) == r"np [x] & * \\"
    assert latex_label("cats_[1]#%-日") == "cats_-1---"


def test_a_latex_table_of_hostile_names_is_whole():
    text = to_latex(table_of(HOSTILE))
    body = text.split("\\midrule\n")[1].split("\n\\bottomrule")[0].splitlines()
    assert len(body) == len(HOSTILE)
    for line in body:
        assert line.endswith(r" \\")
        assert not re.match(r"\s*[\[*]", line)
        bare = re.sub(r"\\[&%$#_{}]", "", line.removesuffix(r" \\"))
        assert bare.count(" & ") == bare.count("&") == 1
        assert bare.count("{") == bare.count("}")
        assert bare.count("$") % 2 == 0
        assert "%" not in bare
        assert "#" not in bare
        commands = set(re.findall(r"\\([A-Za-z]+|.)", bare))
        known = {"textbackslash", "textasciitilde", "textasciicircum", "textbf", "anychar"}
        assert commands <= known
    assert "\n\n" not in text
    assert re.match(r"\s*[\[*]", text.split("\\toprule\n")[1]) is None


def has_latex() -> bool:
    """Return whether pdflatex is here, with the package that tables of results ask for."""
    if shutil.which("pdflatex") is None or shutil.which("kpsewhich") is None:
        return False
    found = subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True, check=False)
    return found.returncode == 0


@pytest.mark.skipif(not has_latex(), reason="needs pdflatex with booktabs")
def test_pdflatex_takes_hostile_names(tmp_path):
    document = (
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
        f"{to_latex(table_of(HOSTILE))}\n\\end{{document}}\n"
    )
    (tmp_path / "t.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:]
