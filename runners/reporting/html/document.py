"""The page itself: sections of HTML around the tables, the figures' data and the script."""

from __future__ import annotations

import functools
import html
import json
import math
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

from runners.reporting import breakdown, comparison, depth_curves
from runners.reporting.html import contents
from runners.reporting.html.analyses import Analysis, all_analyses
from runners.reporting.html.charts import Chart, all_charts
from runners.reporting.results import SweepResults
from runners.reporting.shown import curve_models, note
from runners.reporting.tables import Table
from tasks.base.printable import printable

NO_LIBRARY = (
    "no report.html: vl-convert-python, which brings Vega-Lite, is not installed "
    "(pip install vl-convert-python)"
)
MOST_COMMANDS = 30
SCRIPTS = ("figures.js", "analyses.js", "page.js")
"""One script, in this order."""


class PageUnavailable(RuntimeError):
    """The plotting library is not installed; the message says how to get it."""


@functools.cache
def plotting_library() -> str:
    """Return Vega-Lite, Vega and Vega-Embed as one script, 0.9 MB.

    Raises:
        PageUnavailable: the package that brings them is not installed.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise PageUnavailable(NO_LIBRARY) from error
    bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub knows no default
    return str(bundle).replace("</script", r"<\/script")


def to_html(results: SweepResults, *, extra: str = "", follow: int | None = None) -> str:
    """Return ``report.html``: a page that needs no other file and no network.

    Args:
        results: what it shows.
        extra: sections that stand before the headline, as HTML.
        follow: seconds between two questions to the server of ``runners.watch``; None: no server.

    Raises:
        PageUnavailable: the plotting library is not installed.
    """
    charts, analyses, shown = all_charts(results), all_analyses(results), curve_models(results)
    parts = [
        _headline(results),
        _section("scores", "Comparison", _tables(_main_tables(results)), charts),
        _section("groups", "By category and difficulty", _folded(_group_tables(results)), charts),
        _section("depth", "By depth at evaluation", _folded(_depth_tables(results)), charts),
        _section("learning", "Learning curves", "", charts),
        _analyses(results, analyses),
        _examples(results, shown),
        _configs(results, shown),
        _environment(results),
    ]
    return document(
        title=results.name,
        body=extra + "".join(parts),
        data={
            "charts": [chart.to_json() for chart in charts],
            "analyses": [analysis.to_json() for analysis in analyses],
            "examples": contents.examples(shown),
            "follow": follow,
        },
    )


def document(*, title: str, body: str, data: dict[str, Any]) -> str:
    """Return a whole page of these sections.

    Raises:
        PageUnavailable: the plotting library is not installed.
    """
    files = resources.files("runners.reporting.html")
    style = (files / "page.css").read_text(encoding="utf-8")
    script = "".join((files / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{text(title)}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header><h1>{text(title)}</h1><nav aria-label="Sections" id="contents"></nav></header>
<main id="content">
<noscript><p>Tables are complete without JavaScript; figures and examples need it.</p></noscript>
{body}
</main>
<script type="application/json" id="data">{embedded(data)}</script>
<script type="module">{plotting_library()}</script>
<script type="module">{script}</script>
</body>
</html>
"""


# --- pieces -----------------------------------------------------------------------------


def text(value: str) -> str:
    """Return text of users as HTML, on one line."""
    return html.escape(printable(value))


def embedded(data: Any) -> str:
    """Return data as JSON that may stand in a script element."""
    return json.dumps(_finite(data), ensure_ascii=False, separators=(",", ":")).replace(
        "<", r"\u003c"
    )


def _finite(value: Any) -> Any:
    """Replace NaN and infinity by null, which JSON has."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def section(name: str, title: str, body: str) -> str:
    """Return a section with a heading, or nothing without a body."""
    if not body:
        return ""
    head = f'<h2 id="{name}-h">{title}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-h">{head}{body}</section>\n'


def _section(name: str, title: str, tables: str, charts: Sequence[Chart]) -> str:
    figures = "".join(figure(chart) for chart in charts if chart.section == name)
    return section(
        name, title, (f'<div class="figures">{figures}</div>' if figures else "") + tables
    )


def figure(chart: Chart) -> str:
    """Return the place of a figure, which the script fills, with its legend, data and download."""
    return (
        f'<figure data-chart="{chart.name}"><figcaption>{text(chart.title)}</figcaption>'
        f'<div class="legend" role="group" aria-label="Show or hide"></div>'
        f'<div class="plot"></div>{_noted(chart.note)}<p class="links"></p></figure>'
    )


def table(shown: Table) -> str:
    """Return a table whose columns sort and whose rows filter, with its notes."""
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in shown.name)
    head = "".join(
        f'<th scope="col"{_name_class(shown, c)}><button type="button">{text(column)}</button></th>'
        for c, column in enumerate(shown.columns)
    )
    body = "".join(
        f"<tr>{''.join(_cell(shown, r, c) for c in range(len(row)))}</tr>"
        for r, row in enumerate(shown.rows)
    )
    notes = "".join(f"<li>{text(note)}</li>" for note in shown.notes)
    return (
        f'<h3 id="t-{name}">{text(shown.title)}</h3>'
        f'<div class="table"><label class="filter">Filter rows <input type="search"></label>'
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="t-{name}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></div>"
        + (f'<ul class="note">{notes}</ul>' if notes else "")
    )


def _cell(shown: Table, row: int, column: int) -> str:
    value = text(shown.rows[row][column])
    if (row, column) in shown.bold:
        value = f"<strong>{value}</strong>"
    if column == 0:
        return f'<th scope="row">{value}</th>'
    return f"<td{_name_class(shown, column)}>{value}</td>"


def _name_class(shown: Table, column: int) -> str:
    return ' class="name"' if column < shown.num_names else ""


def _tables(tables: Iterable[Table]) -> str:
    return "".join(map(table, tables))


def _folded(tables: Sequence[Table]) -> str:
    if not tables:
        return ""
    return f"<details><summary>Tables ({len(tables)})</summary>{_tables(tables)}</details>"


# --- sections ---------------------------------------------------------------------------


def _main_tables(results: SweepResults) -> list[Table]:
    problems = breakdown.problems_table(results)
    return [
        comparison.main_table(results),
        *([problems] if problems else []),
        breakdown.splits_table(results),
    ]


def _group_tables(results: SweepResults) -> list[Table]:
    return breakdown.breakdown_tables(results)


def _depth_tables(results: SweepResults) -> list[Table]:
    return [*breakdown.depth_tables(results), *depth_curves.depth_curve_tables(results)]


def _headline(results: SweepResults) -> str:
    found = contents.headline(results)
    parts = "".join(f"<p>{text(line)}</p>" for line in found.compared)
    for title, lines in (
        ("Under which budget", found.budget),
        ("What can be claimed", found.claims or ["No difference between models is shown."]),
        ("What cannot be claimed", found.no_claims),
    ):
        if lines:
            parts += f"<h3>{title}</h3><ul>{''.join(f'<li>{text(n)}</li>' for n in lines)}</ul>"
    return section("headline", "What was compared", parts)


def _analyses(results: SweepResults, analyses: Sequence[Analysis]) -> str:
    command = f"<code>python -m runners.analyze {text(results.page_command[-1])}</code>"
    if not analyses:
        body = f"<p>No run has been analysed; {command} does it, and the next report shows it.</p>"
    else:
        body = f'<div class="figures">{"".join(map(_analysis, analyses))}</div>'
    return section("analyses", "Analyses", body)


def _analysis(found: Analysis) -> str:
    """Return the place of a figure of an analysis, which the script fills."""
    notes = [f"What it cannot say: {found.limits}"]
    if found.kind == "maps":
        notes.append("Of each model the first seed that was analysed.")
    if found.left_out:
        what = "maps" if found.kind == "maps" else "runs"
        notes.append(f"{found.left_out} more {what} are in the files alone.")
    lines = "".join(f'<p class="note">{text(note)}</p>' for note in notes)
    return (
        f'<figure data-analysis="{found.name}"><figcaption>{text(found.title)}</figcaption>'
        '<div class="selects"></div><div class="legend" role="group" aria-label="Show or hide">'
        '</div><p class="empty" hidden>This model has no such numbers.</p><div class="plot"></div>'
        f'{lines}<p class="links"></p></figure>'
    )


def _examples(results: SweepResults, shown: SweepResults) -> str:
    if not any((run.directory / "predictions.jsonl").is_file() for run in shown.runs):
        return ""
    selects = "".join(
        f'<label>{label} <select data-field="{field}">'
        '<option value="">all</option></select></label>'
        for field, label in (
            ("model", "Model"),
            ("split", "Split"),
            ("category", "Category"),
            ("correct", "Right or wrong"),
        )
    )
    body = (
        f"{_noted(note(results, shown))}"
        "<p>Of the first finished seed of each model, a few of each category; all are in its "
        f'predictions.jsonl.</p><div class="selects">{selects}</div>'
        '<p id="examples-count" role="status"></p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Examples">'
        "<table><thead><tr><th>model</th><th>split</th><th>category</th><th>source</th>"
        "<th>target</th><th>prediction</th><th>what went wrong</th></tr></thead>"
        '<tbody id="examples-rows"></tbody></table></div>'
        '<button type="button" id="examples-more">Show more</button>'
    )
    return section("examples", "Example predictions", body)


def _configs(results: SweepResults, shown: SweepResults) -> str:
    texts = contents.configs(results)
    differences = contents.differences_table(texts) if len(texts) > 1 else None
    whole = "".join(
        f"<details><summary>{text(label)}</summary>"
        f'<pre tabindex="0">{html.escape(config)}</pre></details>'
        for label, config in contents.configs(shown).items()
    )
    parts = [table(differences) if differences else "", _noted(note(results, shown)), whole]
    return section("configs", "Configs", "".join(parts))


def _noted(said: str) -> str:
    return f'<p class="note">{text(said)}</p>' if said else ""


def _environment(results: SweepResults) -> str:
    found = contents.environment_table(results)
    return section(
        "environment",
        "Environment",
        (table(found) if found else "")
        + _commands("Commands to reproduce", contents.commands(results))
        + _commands("The same for each run alone", contents.run_commands(results)),
    )


def _commands(title: str, lines: list[str]) -> str:
    if not lines:
        return ""
    shown = "\n".join(map(html.escape, lines))
    body = f'<pre tabindex="0">{shown}</pre>'
    if len(lines) > MOST_COMMANDS:
        return f"<details><summary>{title} ({len(lines)})</summary>{body}</details>"
    return f"<h3>{title}</h3>{body}"
