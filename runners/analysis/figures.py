"""Figures of analyses: curves over depth, and maps."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_MAPS = 48
"""Panels of a figure of maps; the table has all of them."""


@dataclass(frozen=True)
class Draw:
    """How rows are drawn: in words, which a page follows, and as a picture."""

    plan: dict[str, Any]
    """``kind`` and the columns that it takes."""
    make: Callable[[Sequence[dict[str, Any]], str], Any]

    def __call__(self, rows: Sequence[dict[str, Any]], title: str) -> Any:
        """Return a figure of the rows."""
        return self.make(rows, title)


def curves(x: str, y: Sequence[str], *, group: Sequence[str] = ()) -> Draw:
    """Return what draws a panel for each column ``y`` over ``x``, a line for each ``group``."""

    def draw(rows: Sequence[dict[str, Any]], title: str) -> Any:
        from matplotlib import colormaps

        figure, axes = _panels(len(y), columns=3)
        for panel, column in zip(axes, y, strict=True):
            lines: dict[str, list[tuple[Any, float]]] = {}
            for row in rows:
                if row[column] is not None:
                    label = ", ".join(f"{name} {row[name]}" for name in group)
                    lines.setdefault(label, []).append((row[x], row[column]))
            colours = colormaps["turbo"](np.linspace(0.05, 0.95, len(lines)))
            for (label, points), colour in zip(lines.items(), colours, strict=True):
                panel.plot(*zip(*points, strict=True), marker="o", ms=3, label=label, color=colour)
            panel.set(xlabel=x.replace("_", " "), title=column.replace("_", " "))
            panel.grid(alpha=0.3)
            if all(isinstance(row[x], int) for row in rows):
                panel.xaxis.get_major_locator().set_params(integer=True)
        handles, labels = axes[0].get_legend_handles_labels()
        if group and handles:
            across = int(figure.get_figwidth() / (0.6 + 0.08 * max(map(len, labels)))) or 1
            place = "outside lower center"
            legend = figure.legend(handles, labels, loc=place, ncols=across, fontsize="small")
            height = legend.get_window_extent(figure.canvas.get_renderer()).height / figure.dpi
            figure.set_figheight(figure.get_figheight() + height)
        _add_title(figure, title)
        return figure

    return Draw({"kind": "curves", "x": x, "y": list(y), "group": list(group)}, draw)


def maps(x: str, y: str, value: str, *, group: Sequence[str], beside: Sequence[str] = ()) -> Draw:
    """Return what draws a map of ``value`` over columns ``x`` and ``y`` for each ``group``.

    A page offers the columns ``beside`` in its place.
    """

    def draw(rows: Sequence[dict[str, Any]], title: str) -> Any:
        found: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            found.setdefault(", ".join(f"{name} {row[name]}" for name in group), []).append(row)
        shown = dict(list(found.items())[:MOST_MAPS])
        figure, axes = _panels(len(shown), columns=6, size=(2.4, 2.2))
        for panel, (label, cells) in zip(axes, shown.items(), strict=True):
            across = list(dict.fromkeys(row[x] for row in cells))
            down = list(dict.fromkeys(row[y] for row in cells))
            image = np.full((len(down), len(across)), np.nan)
            for row in cells:
                image[down.index(row[y]), across.index(row[x])] = row[value]
            drawn = panel.imshow(image, aspect="auto", cmap="viridis", vmin=0)
            figure.colorbar(drawn, ax=panel)
            panel.set_title(label, fontsize="small")
            panel.set(xlabel=x.replace("_", " "), ylabel=y.replace("_", " "))
            _name_ticks(panel.xaxis, across)
            _name_ticks(panel.yaxis, down)
        more = f" (the first {len(shown)} of {len(found)})" if len(found) > len(shown) else ""
        _add_title(figure, title + more)
        return figure

    plan = {"kind": "maps", "x": x, "y": y, "values": [value, *beside], "group": list(group)}
    return Draw(plan, draw)


def _add_title(figure: Any, title: str) -> None:
    figure.suptitle("\n".join(textwrap.wrap(title, int(figure.get_figwidth() * 9))))


def _name_ticks(axis: Any, names: list[Any]) -> None:
    step = math.ceil(len(names) / 12)
    axis.set_ticks(range(0, len(names), step), [str(name) for name in names[::step]])
    axis.set_tick_params(labelsize="x-small")


def _panels(
    count: int, *, columns: int, size: tuple[float, float] = (4.0, 3.0)
) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(columns, count)
    down = math.ceil(count / across)
    figure = Figure(figsize=(max(size[0] * across, 4.0), size[1] * down + 1), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for empty in axes[count:]:
        empty.set_visible(False)
    return figure, axes[:count]
