"""Charts as inline SVG: bars with intervals, lines, points. Text is escaped; colours are CSS variables of the page.

Owns geometry only; what is drawn is `html_report`'s and `tune`'s.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from recsys.bench.plain import shortened

Series = Mapping[str, Sequence[tuple[float, float]]]
"""Points (x, y) by name."""

WIDTH = 440
LABEL = 168
ROW = 24
HEIGHT = 260
LEFT, BOTTOM, TOP, RIGHT = 52, 40, 12, 14


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: what it is called, how long it is, the ends of its interval, and which colour (0 is the strong one)."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    colour: int = 1
    note: str = ""


def bars(found: Sequence[Bar], *, title: str, digits: int = 4) -> str:
    """Horizontal bars from zero, with whiskers where there are intervals."""
    top = max([0.0, *(max(bar.value, bar.high or 0.0) for bar in found)]) or 1.0
    notes = [bar.note or f"{bar.value:.{digits}f}" for bar in found]
    room = WIDTH - LABEL - 14 - max(map(len, notes), default=0) * 7
    parts = []
    for place, bar in enumerate(found):
        y, length = place * ROW, room * max(0.0, bar.value) / top
        parts.append(
            f'<text x="{LABEL - 8}" y="{y + 16}" class="r">{escape(shortened(bar.label, 22))}'
            f"<title>{escape(bar.label)}</title></text>"
            f'<rect x="{LABEL}" y="{y + 4}" width="{max(length, 1):.1f}" height="{ROW - 8}" '
            f'rx="2" class="c{bar.colour % 8}"/>'
        )
        end = length
        if bar.low is not None and bar.high is not None:
            low, high = (LABEL + room * max(0.0, edge) / top for edge in (bar.low, bar.high))
            parts.append(
                f'<path d="M{low:.1f} {y + 12}H{high:.1f}M{low:.1f} {y + 8}v8M{high:.1f} {y + 8}v8" class="w"/>'
            )
            end = max(length, high - LABEL)
        parts.append(f'<text x="{LABEL + end + 6:.1f}" y="{y + 16}">{escape(notes[place])}</text>')
    return _svg("".join(parts), len(found) * ROW + 4, title)


def lines(series: Series, *, title: str, x_name: str, y_name: str) -> str:
    """One line a series, with a legend below in HTML."""
    drawn = _plane(series, title=title, x_name=x_name, y_name=y_name, joined=tuple(series), zero=True)
    return drawn + legend(list(series))


def points(
    series: Series,
    *,
    title: str,
    x_name: str,
    y_name: str,
    zero: bool = True,
    joined: Collection[str] = (),
    log_x: bool = False,
) -> str:
    """Points, with a legend below in HTML.

    Args:
        series: by name.
        title: for those who cannot see it.
        x_name: below the axis.
        y_name: above the axis.
        zero: both axes hold 0.
        joined: names of series that are drawn as lines.
        log_x: the x axis is logarithmic; every x must be above 0.
    """
    drawn = _plane(series, title=title, x_name=x_name, y_name=y_name, joined=joined, zero=zero, log_x=log_x)
    return drawn + legend(list(series))


def legend(names: Sequence[str]) -> str:
    """Names with their colours, in HTML, so that it wraps on a phone."""
    cells = "".join(f'<li><i class="b{place % 8}"></i>{escape(name)}</li>' for place, name in enumerate(names))
    return f'<ul class="legend">{cells}</ul>'


def _plane(
    series: Series,
    *,
    title: str,
    x_name: str,
    y_name: str,
    joined: Collection[str],
    zero: bool,
    log_x: bool = False,
) -> str:
    every = [point for found in series.values() for point in found] or [(1.0, 0.0)]
    whole = set(joined) == set(series)  # lines run over the whole width
    xs, ys = [math.log10(x) if log_x else x for x, _ in every], [y for _, y in every]
    x_ticks = _decades(xs) if log_x else _ticks([*xs, *([0.0] if zero and not whole else [])])
    if whole and len(set(xs)) <= 8:
        x_ticks = sorted(set(xs))
    y_ticks = _ticks([*ys, *([0.0] if zero else [])])
    x_low, x_high = min(*xs, x_ticks[0]), max(*xs, x_ticks[-1])
    y_low, y_high = y_ticks[0], y_ticks[-1]
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + across * (x - x_low) / ((x_high - x_low) or 1.0), TOP + down * (
            1 - (y - y_low) / (y_high - y_low)
        )

    parts = []
    for y in y_ticks:
        parts.append(f'<path d="M{LEFT} {at(x_low, y)[1]:.1f}H{WIDTH - RIGHT}" class="g"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at(x_low, y)[1] + 4:.1f}" class="r">{y:.4g}</text>')
    for x in x_ticks:
        shown = 10**x if log_x else x
        parts.append(f'<text x="{at(x, y_low)[0]:.1f}" y="{HEIGHT - BOTTOM + 16}" class="m">{shown:.4g}</text>')
    parts.append(f'<text x="{LEFT + across / 2}" y="{HEIGHT - 4}" class="m">{escape(x_name)}</text>')
    for place, (name, found) in enumerate(series.items()):
        where = [at(math.log10(x) if log_x else x, y) for x, y in found]
        if name in joined and where:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in where)
            parts.append(f'<path d="M{path}" class="l l{place % 8}"/>')
        told = zip(where, found, strict=True)
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3 if name in joined else 5}" class="c{place % 8}">'
            f"<title>{escape(name)}: {given[0]:.4g}, {given[1]:.4g}</title></circle>"
            for (x, y), given in told
        ]
    return f'<p class="axis">{escape(y_name)}</p>' + _svg("".join(parts), HEIGHT, title)


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers, six at most, from below the least value to above the greatest."""
    low, high = min(values), max(values)
    if high == low:
        low, high = low - abs(low) * 0.1, high + (abs(high) * 0.1 or 1.0)
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(power * times for times in (1, 2, 2.5, 5, 10) if (high - low) / (power * times) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def _decades(exponents: Sequence[float]) -> list[float]:
    """Whole exponents of 10 around those given."""
    low, high = math.floor(min(exponents)), math.ceil(max(exponents))
    return [float(place) for place in range(low, max(high, low + 1) + 1)]


def _svg(inside: str, height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
        f"{inside}</svg>"
    )
