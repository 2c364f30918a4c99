"""Nothing of a figure is cut, and its axes keep their size, whatever names are in the legend."""

import itertools
import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from runners.reporting.drawing import PANEL_INCHES, Panel, draw, save

GRID = itertools.product(
    ("transformer", "universal", "moeut"),
    (0.00031622776601683794, 0.001, 0.003, 0.01),
    (0.0, 0.01, 0.1, 0.2, 0.3),
)
LABELS = [f"{name} (learning_rate={rate}, weight_decay={decay})" for name, rate, decay in GRID]
HOSTILE = [
    "_first",
    r"$\frac{$ (x=$1$)",
    "two\nlines",
    "long " * 40,
    "x" * 400,
    r"a_b^c \alpha",
    "",
]


def make_panels(labels, count, title="gen"):
    curves = {label: {1: [0.1 + n / 99, 0.3], 2: [0.5, 0.6]} for n, label in enumerate(labels)}
    return [
        Panel(title=title, x="step", y="exact_match", curves=curves, marks={labels[0]: 1.0})
        for _ in range(count)
    ]


def pixels(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def is_framed(image):
    """Whether the outermost pixels are white: whatever is cut touches the border."""
    edges = image[0], image[-1], image[:, 0], image[:, -1]
    return all((edge == 255).all() for edge in edges)


@pytest.mark.parametrize("num_panels", [1, 4])
@pytest.mark.parametrize("labels", [LABELS[:1], LABELS[:4], LABELS[:12], LABELS, HOSTILE])
def test_nothing_is_cut(labels, num_panels):
    figure = draw(make_panels(labels, num_panels))
    image = pixels(figure)
    assert is_framed(image)
    renderer = figure.canvas.get_renderer()
    (legend,) = figure.legends
    box = legend.get_window_extent(renderer)
    width, height = figure.bbox.width, figure.bbox.height
    texts = legend.get_texts()
    assert len(texts) == len(labels)
    for text in texts:
        extent = text.get_window_extent(renderer)
        assert min(extent.x0, extent.y0, width - extent.x1, height - extent.y1) >= 0
    for one, other in itertools.pairwise(t.get_window_extent(renderer) for t in texts):
        # One below the other, or in the next column.
        assert other.y1 <= one.y0 + 2 or other.x0 >= one.x1
    for axes in figure.axes:
        if axes.get_visible():
            inches = axes.get_window_extent(renderer)
            assert inches.width / figure.dpi > 0.7 * PANEL_INCHES[0]
            assert inches.height / figure.dpi > 0.7 * PANEL_INCHES[1]
            assert axes.get_tightbbox(renderer).y0 >= box.y1  # the legend hides nothing


def test_few_short_names_leave_the_figure_its_size():
    names = ["transformer", "universal", "moeut", "sigma_moe"]
    figure = draw(make_panels(names, 2))
    # Matplotlib 3.8 measures the legend a little taller than 3.11 does.
    assert figure.get_size_inches() == pytest.approx([8.4, 3.6], abs=0.01)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names


def test_names_are_written_as_they_are():
    figure = draw(make_panels(HOSTILE, 1, title="$x$ and _y_"))
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown[:3] == ["_first", r"$\frac{$ (x=$1$)", r"two\nlines"]
    assert shown[3].replace("\n", " ") == HOSTILE[3]
    assert shown[4].replace("\n", "") == HOSTILE[4]
    assert figure.axes[0].get_title() == "$x$ and _y_"
    assert not figure.axes[0].title.get_parse_math()


def test_the_colours_of_sixty_settings_differ():
    (axes,) = draw(make_panels(LABELS, 1)).axes
    means = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_marker() == "o"]
    assert len({tuple(line.get_color()) for line in means}) == 60


@pytest.mark.parametrize("caption", ["$x$ of 9", " ".join(["the best of many models"] * 9)])
def test_a_caption_stands_above_panels_that_keep_their_size(caption):
    figure = draw(make_panels(LABELS[:2], 1, title="one"), caption=caption)
    assert is_framed(pixels(figure))
    (axes,) = figure.axes
    box = axes.get_window_extent()
    assert box.height / figure.dpi > 0.7 * PANEL_INCHES[1]
    (above,) = figure.texts
    assert above.get_text().replace("\n", " ") == caption
    renderer = figure.canvas.get_renderer()
    assert above.get_window_extent(renderer).y0 >= axes.get_tightbbox(renderer).y1


def test_the_files_of_a_figure_have_one_layout(tmp_path):
    """The frame of each panel stands in the SVG where the layout for the PNG has put it."""
    figure = draw(make_panels(LABELS[:2], 2), caption="some")
    png, _, svg = save(figure, tmp_path / "figure")
    text = svg.read_text(encoding="utf-8")
    boxes = re.findall(r'<g id="patch_\d+">\s*<path d="M ([\d.]+) ([\d.]+)', text)
    width, height = figure.get_size_inches()
    for axes in figure.axes:
        x, y = axes.get_position().x0 * width * 72, (1 - axes.get_position().y0) * height * 72
        assert any(abs(float(a) - x) < 0.1 and abs(float(b) - y) < 0.1 for a, b in boxes)
    with Image.open(png) as image:
        assert image.size == (int(width * 150), int(height * 150))


@pytest.mark.parametrize("title", ["a long title of a split " * 6, "w" * 200])
def test_titles_stay_inside(title):
    assert is_framed(pixels(draw(make_panels(["a"], 1, title=title))))


def test_whole_numbers_have_ticks_at_whole_numbers():
    curve = {1.0: [0.5], 2.0: [0.6], 3.0: [0.7]}
    figure = draw([Panel(title="t", x="repeats", y="accuracy", curves={"a": curve})])
    ticks = figure.axes[0].get_xticks()
    assert [tick for tick in ticks if not float(tick).is_integer()] == []
    halves = {0.5: [0.5], 1.5: [0.6]}
    figure = draw([Panel(title="t", x="repeats", y="accuracy", curves={"a": halves})])
    assert any(not float(tick).is_integer() for tick in figure.axes[0].get_xticks())


def test_a_setting_keeps_its_colour_where_others_are_not_drawn():
    settings = ["transformer", "universal", "moeut"]
    all_of_them = colours_of(draw(make_panels(settings, 1), settings))
    assert len(set(all_of_them)) == 3
    assert colours_of(draw(make_panels(settings[1:], 1), settings)) == all_of_them[1:]
    assert colours_of(draw(make_panels(["2 repeats"], 1), settings)) == all_of_them[:1]


def colours_of(figure):
    return [line.get_color() for line in figure.axes[0].get_lines() if line.get_marker() == "o"]
