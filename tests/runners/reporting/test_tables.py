"""Rendering of tables, and numbers as text."""

import dataclasses
import io

from runners.reporting.statistics import Comparison, summarize
from runners.reporting.tables import (
    Table,
    count,
    escape_latex,
    interval,
    mean_std,
    p_value,
    short_count,
    time,
    to_latex,
    to_markdown,
    to_rich,
)

TABLE = Table(
    name="demo-main",
    title="demo: gen",
    columns=["model", "50 % | n"],
    rows=[["a_b", "0.5 ± 0.1"], ["σ-MoE", "1 – 2"]],
    bold=frozenset({(1, 1)}),
    notes=["Two rows."],
)


def test_markdown():
    assert to_markdown(TABLE) == (
        "## demo: gen\n\n"
        "| model | 50 % \\| n |\n"
        "| ----- | --------- |\n"
        "| a_b   | 0.5 ± 0.1 |\n"
        "| σ-MoE | **1 – 2** |\n\n"
        "- Two rows.\n"
    )


def test_columns_of_names_are_set_left():
    table = dataclasses.replace(TABLE, num_names=2)
    assert r"\begin{tabular}{ll}" in to_latex(table)
    assert [column.justify for column in to_rich(table).columns] == ["left", "left"]
    assert [column.justify for column in to_rich(TABLE).columns] == ["left", "right"]


def test_latex():
    text = to_latex(TABLE)
    assert text == "\n".join(
        [
            r"\begin{table}",
            r"\centering\small",
            r"\begin{tabular}{lr}",
            r"\toprule",
            r"model & 50 \% | n \\",
            r"\midrule",
            r"a\_b & 0.5 $\pm$ 0.1 \\",
            r"$\sigma$-MoE & \textbf{1 -- 2} \\",
            r"\bottomrule",
            r"\end{tabular}",
            r"\caption{demo: gen. Two rows.}",
            r"\label{tab:demo-main}",
            r"\end{table}",
        ]
    )


def test_latex_specials():
    assert escape_latex(r"a\b{c}~^<#$&%_") == (
        r"a\textbackslash{}b\{c\}\textasciitilde{}\textasciicircum{}$<$\#\$\&\%\_"
    )


def test_terminal():
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=80).print(to_rich(TABLE))
    assert "0.5 ± 0.1" in out.getvalue()
    assert "σ-MoE" in out.getvalue()


def test_numbers():
    assert mean_std([]) == "–"
    assert mean_std([0.5]) == "0.500"
    assert mean_std([0.5, 0.7]) == "0.600 ± 0.141"
    assert count(1234567.0) == "1,234,567"
    assert count(None) == "–"
    assert short_count(999_999_999) == "999,999,999"
    assert short_count(1e9) == "1.00 G"
    assert short_count(176_032_798_906) == "176 G"
    assert short_count(1_466_640_599_454) == "1.47 T"
    assert short_count(999_999_999_999) == "1.00 T"
    assert short_count(2.5e21) == "2.50e+03 E"
    assert [time(s) for s in (None, 200)] == ["–", "3 min 20 s"]
    assert interval(summarize([0.2])) == "–"
    assert interval(summarize([0.2, 0.2, 0.2])) == "[0.200, 0.200]"
    assert p_value(None) == "–"
    assert p_value(Comparison(None, None, 0.1)) == "n too small to test"
    assert p_value(Comparison(0.01, 0.02, 0.1)) == "0.020"
    assert p_value(Comparison(0.0001, 0.0002, 0.1)) == "<0.001"
