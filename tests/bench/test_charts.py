import re

import pytest

from recsys.bench.charts import Bar, bars, lines, points
from recsys.bench.plain import aligned, width


def texts(svg):
    return re.findall(r"<text[^>]*>([^<]*)", svg)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.97], ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ([0.0, 0.013], ["0", "0.005", "0.01", "0.015"]),
        ([0.0, 0.0], ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
    ],
)
def test_axes_have_round_numbers(values, expected):
    drawn = lines({"a": [(5.0, values[0]), (10.0, values[1])]}, title="t", x_name="x", y_name="y")
    assert texts(drawn)[: len(expected)] == expected
    assert texts(drawn)[len(expected) :] == ["5", "10", "x"]


def test_a_logarithmic_axis_has_decades():
    drawn = points({"a": [(0.02, 0.5), (6.0, 1.0)]}, title="t", x_name="x", y_name="y", log_x=True)
    assert texts(drawn)[-5:] == ["0.01", "0.1", "1", "10", "x"]
    places = [float(place) for place in re.findall(r'circle cx="([\d.]+)"', drawn)]
    assert 52 < places[0] < places[1] < 440


def test_an_axis_need_not_begin_at_zero_and_lines_may_be_among_points():
    series = {"trial": [(0.0, 0.51), (1.0, 0.50)], "best": [(0.0, 0.51), (1.0, 0.51)]}
    drawn = points(series, title="t", x_name="x", y_name="y", zero=False, joined=("best",))
    assert texts(drawn)[0] == "0.5"
    assert drawn.count('class="l l1"') == 1
    assert 'class="l l0"' not in drawn


def test_nothing_to_draw_is_an_empty_chart():
    for drawn in (lines({}, title="t", x_name="x", y_name="y"), bars([], title="t")):
        assert "<svg" in drawn


@pytest.mark.parametrize("label", ["无线降噪耳机" * 4, "長い名前の商品" * 4])
def test_wide_labels_are_cut_at_the_same_width(label):
    drawn = bars([Bar(label, 1.0, 0.5, 1.5)], title="t")
    shown = re.search(r'class="r">([^<]*…)', drawn).group(1)
    assert label.startswith(shown[:-1])
    assert width(shown) <= 22


def test_columns_of_wide_characters_are_aligned():
    lines = aligned([("name", "n"), ("耳机", "1"), ("pans", "22")]).splitlines()
    assert len({width(line) for line in lines}) == 1


def test_labels_are_cut_and_escaped():
    drawn = bars([Bar("<b>" + "long " * 9, 1.0, 0.5, 1.5)], title="<t>")
    assert "&lt;b&gt;long long long lon…<title>&lt;b&gt;" in drawn
    assert "<b>" not in drawn
