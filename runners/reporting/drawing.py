"""How panels become a figure: curves with their bands, and a legend that is never cut.

A figure is as large as its texts need: a legend that does not fit below the panels in fewer columns
makes the figure wider or higher, and leaves the axes their size.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.base.printable import printable

Curve = Mapping[float, Sequence[float]]
"""Position on the x axis → every seed's value there."""

PANEL_INCHES = (4.2, 3.2)
PANELS_IN_A_ROW = 3
LEGEND_COLUMNS = 4
LEGEND_ROWS = 16
"""Rows of a legend above which the figure is made wider, up to ``PANELS_IN_A_ROW`` panels."""
LABEL_INCHES = 8.0
"""Width at which a label goes on in the next line."""
MARGIN_INCHES = 0.1
PNG_DPI = 150
TOKENS = "tokens seen"


class Panel:
    """One pair of axes: a curve per setting.

    Args:
        title: Above the axes.
        x: Label of the x axis.
        y: Label of the y axis.
        curves: Setting's label → curve.
        marks: Setting's label → x of a vertical mark.
        accuracy: Whether y runs from 0 to 1; otherwise it is logarithmic, unless ``linear``.
        linear: Whether y is linear though it is no accuracy.
        points: Whether every seed is drawn as a point beside its band.
        wide: Whether x is logarithmic.
    """

    def __init__(
        self,
        *,
        title: str,
        x: str,
        y: str,
        curves: Mapping[str, Curve],
        marks: Mapping[str, float] | None = None,
        accuracy: bool = True,
        linear: bool = False,
        points: bool = True,
        wide: bool = False,
    ) -> None:
        self.title, self.x, self.y = title, x, y
        self.curves, self.marks = curves, marks or {}
        self.accuracy, self.points, self.wide = accuracy, points, wide
        self.linear = linear


def draw(panels: Sequence[Panel], names: Sequence[str] = (), *, caption: str = "") -> Any:
    """Return a figure with the panels side by side, at most three in a row.

    Where all curves are among ``names``, colours follow their order, so that a setting looks the
    same in all figures, whichever others are drawn.

    A band is one standard deviation (ddof = 1) around the mean over seeds, within 0 and 1 for an
    accuracy; the points are the seeds, since accuracies are often bimodal.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(PANELS_IN_A_ROW, len(panels))
    lines = math.ceil(len(panels) / columns)
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * columns, height * lines + 0.4), layout="constrained")
    FigureCanvasAgg(figure)  # measures text
    axes = figure.subplots(lines, columns, squeeze=False)
    labels = list(dict.fromkeys(label for panel in panels for label in panel.curves))
    if set(labels) <= set(names):
        labels = list(dict.fromkeys(names))
    palette = colormaps["tab10" if len(labels) <= 10 else "turbo"]
    colours = {
        label: palette(index if len(labels) <= 10 else index / (len(labels) - 1))
        for index, label in enumerate(labels)
    }
    drawn: dict[str, Any] = {}
    for index, panel in enumerate(panels):
        drawn = _draw_panel(axes[index // columns][index % columns], panel, colours) | drawn
    for index in range(len(panels), lines * columns):
        axes[index // columns][index % columns].set_visible(False)
    if caption:
        _add_caption(figure, caption)
    _add_legend(figure, list(drawn), list(drawn.values()))
    return figure


# --- axes -------------------------------------------------------------------------------


def _draw_panel(axes: Any, panel: Panel, colours: Mapping[str, Any]) -> dict[str, Any]:
    """Draw a panel and return the line of each label that has one."""
    drawn = {}
    for label, curve in panel.curves.items():
        if not curve:
            continue
        x = np.array(sorted(curve))
        mean = np.array([np.mean(curve[at]) for at in x])
        std = np.array([np.std(curve[at], ddof=1) if len(curve[at]) > 1 else 0.0 for at in x])
        low, high = mean - std, mean + std
        if panel.accuracy:
            low, high = low.clip(0, 1), high.clip(0, 1)
        else:
            low = np.maximum(low, mean / 10)
        colour = colours[label]
        (drawn[label],) = axes.plot(x, mean, color=colour, marker="o" if panel.points else "", ms=3)
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        if panel.points:
            xs = [at for at in x for _ in curve[at]]
            ys = [value for at in x for value in curve[at]]
            axes.scatter(xs, ys, color=colour, s=8, alpha=0.5, linewidths=0)
        if label in panel.marks:
            axes.axvline(panel.marks[label], color=colour, linestyle=":", linewidth=1)
    _name_axes(axes, panel)
    if panel.accuracy:
        axes.set_ylim(-0.03, 1.03)
    elif not panel.linear:
        axes.set_yscale("log")
        _write_numbers_out(axes.yaxis)
    if panel.wide:
        axes.set_xscale("log", base=2)
        _write_numbers_out(axes.xaxis)
    elif panel.x != TOKENS and all(float(x).is_integer() for c in panel.curves.values() for x in c):
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # there are no 2.5 repeats
    axes.grid(alpha=0.3, which="both")
    return drawn


def _name_axes(axes: Any, panel: Panel) -> None:
    width, height = (0.8 * inches for inches in PANEL_INCHES)
    for text, limit in (
        (axes.set_title(printable(panel.title)), width),
        (axes.set_xlabel(printable(panel.x)), width),
        (axes.set_ylabel(printable(panel.y.replace("_", " "))), height),
    ):
        text.set_parse_math(False)
        text.set_text(_wrapped(text.get_text(), text.get_fontproperties(), limit))
    if panel.x == TOKENS:
        from matplotlib.ticker import EngFormatter

        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 2.5G rather than 2500000000


def _write_numbers_out(axis: Any) -> None:
    """Label a logarithmic axis with numbers (1.5, not 1.5 × 10⁰), also between powers."""
    from matplotlib.ticker import FuncFormatter, LogFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    # Labels between powers are left out where the axis spans many powers.
    axis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.6)))


def _add_caption(figure: Any, caption: str) -> None:
    """Put a line above the panels, which keep their size."""
    width, height = figure.get_size_inches()
    text = figure.suptitle("", fontsize="medium")
    text.set_parse_math(False)
    text.set_text(_wrapped(caption, text.get_fontproperties(), width - 2 * MARGIN_INCHES))
    figure.set_size_inches(width, height + _size(figure, text)[1] + MARGIN_INCHES)


# --- the legend -------------------------------------------------------------------------


def _add_legend(figure: Any, labels: Sequence[str], handles: Sequence[Any]) -> None:
    """Put the legend below the axes, and make the figure large enough to hold both."""
    if not labels:
        return
    width, height = figure.get_size_inches()
    one_row = _size(figure, _legend(figure, labels[:1], handles[:1], columns=1))[1]
    one_column = _size(figure, _legend(figure, labels, handles, columns=1))[0]
    # Room for the legend: below the panels, then for its widest label, then for more columns.
    rooms = {width, one_column + 2 * MARGIN_INCHES, PANEL_INCHES[0] * PANELS_IN_A_ROW}
    for room in sorted(room for room in rooms if room >= width):
        figure.legends.clear()
        across, down = _fit_legend(figure, labels, handles, room - 2 * MARGIN_INCHES)
        across += 2 * MARGIN_INCHES
        if across <= room and down <= LEGEND_ROWS * one_row:
            break
    # The layout gives the axes what the legend leaves.
    figure.set_size_inches(max(width, across), height + max(0.0, down - one_row))


def _fit_legend(
    figure: Any, labels: Sequence[str], handles: Sequence[Any], room: float
) -> tuple[float, float]:
    """Add a legend of as many columns as fit, at least one; return its width and height, inches."""
    for columns in range(min(LEGEND_COLUMNS, len(labels)), 0, -1):
        legend = _legend(figure, labels, handles, columns=columns)
        size = _size(figure, legend)
        if size[0] <= room or columns == 1:
            break
        legend.remove()
    return size


def _legend(figure: Any, labels: Sequence[str], handles: Sequence[Any], *, columns: int) -> Any:
    # matplotlib leaves out labels that begin with "_" and typesets "$": names are set afterwards.
    names = [f"{number}" for number in range(len(labels))]
    legend = figure.legend(handles, names, loc="outside lower center", ncols=columns)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(_wrapped(printable(label), text.get_fontproperties(), LABEL_INCHES))
    return legend


def _size(figure: Any, artist: Any) -> tuple[float, float]:
    """Return width and height of a legend or a text in inches."""
    extent = artist.get_window_extent(figure.canvas.get_renderer())
    return extent.width / figure.dpi, extent.height / figure.dpi


# --- text -------------------------------------------------------------------------------


def _wrapped(text: str, font: Any, inches: float) -> str:
    """Return text with line ends such that no line is wider than so many inches."""
    if _width(text, font) <= inches:
        return text
    lines, line = [], ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if _width(longer, font) <= inches:
            line = longer
            continue
        if line:
            lines.append(line)
        line = word
        while _width(line, font) > inches:
            lengths = range(1, len(line))
            cut = max(1, bisect.bisect(lengths, inches, key=lambda n: _width(line[:n], font)))
            lines.append(line[:cut])
            line = line[cut:]
    return "\n".join([*lines, line])


def _width(text: str, font: Any) -> float:
    from matplotlib.textpath import text_to_path

    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72


# --- files ------------------------------------------------------------------------------


def save(figure: Any, stem: Path) -> list[Path]:
    """Write a figure as PNG, PDF and SVG without dates or version strings; return the paths.

    It is laid out once, for the PNG, and the others get that layout: ``savefig`` would lay it out
    for each anew.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    png, pdf, svg = (stem.with_suffix(ending) for ending in (".png", ".pdf", ".svg"))
    _lay_out(figure)
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    without = {"CreationDate": None, "Producer": None, "Creator": None}
    FigureCanvasPdf(figure).print_pdf(pdf, metadata=without)
    # Names of an SVG's parts are drawn at random unless they are salted; its text stays text.
    with rc_context({"svg.hashsalt": "figure", "svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
    return [png, pdf, svg]


def _lay_out(figure: Any) -> None:
    """Give axes, titles and labels their final places."""
    figure.set_dpi(PNG_DPI)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        inverted = axes.transAxes.inverted()
        for axis in (axes.xaxis, axes.yaxis):
            # A label with coordinates of its own is not placed anew in each drawing, for which all
            # numbers of its axis would be measured.
            place = axis.label.get_transform().transform(axis.label.get_position())
            axis.set_label_coords(*inverted.transform(place))
