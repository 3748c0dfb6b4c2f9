"""Charts as inline SVG: bars with intervals, lines, points. Text is escaped; colours are CSS variables of the page.

Owns geometry only; what is drawn is `html_report`'s and `tune`'s.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape

Series = Mapping[str, Sequence[tuple[float, float]]]
"""Points (x, y) by name."""

WIDTH = 480
LABEL = 184
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
            f'<text x="{LABEL - 8}" y="{y + 16}" class="r">{escape(_cut(bar.label))}'
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
    series: Series, *, title: str, x_name: str, y_name: str, zero: bool = True, joined: Collection[str] = ()
) -> str:
    """Points, with a legend below in HTML.

    Args:
        series: by name.
        title: for those who cannot see it.
        x_name: below the axis.
        y_name: above the axis.
        zero: both axes hold 0.
        joined: names of series that are drawn as lines.
    """
    drawn = _plane(series, title=title, x_name=x_name, y_name=y_name, joined=joined, zero=zero)
    return drawn + legend(list(series))


def legend(names: Sequence[str]) -> str:
    """Names with their colours, in HTML, so that it wraps on a phone."""
    cells = "".join(f'<li><i class="b{place % 8}"></i>{escape(name)}</li>' for place, name in enumerate(names))
    return f'<ul class="legend">{cells}</ul>'


def _plane(series: Series, *, title: str, x_name: str, y_name: str, joined: Collection[str], zero: bool) -> str:
    every = [point for found in series.values() for point in found] or [(0.0, 0.0)]
    whole = set(joined) == set(series)  # lines run over the whole width
    xs, ys = [point[0] for point in every], [point[1] for point in every]
    x_low, x_high = (min(0.0, *xs), max(xs)) if zero and not whole else (min(xs), max(xs))
    x_wide, y_high = (x_high - x_low) or 1.0, max(0.0, *ys) * 1.05 or 1.0
    y_low = min(0.0, *ys)
    if not zero:
        room = (max(ys) - min(ys)) * 0.1 or abs(max(ys)) * 0.1 or 1.0
        y_low, y_high = min(ys) - room, max(ys) + room
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + across * (x - x_low) / x_wide, TOP + down * (1 - (y - y_low) / ((y_high - y_low) or 1.0))

    parts = []
    for step in range(5):
        y = y_low + (y_high - y_low) * step / 4
        parts.append(f'<path d="M{LEFT} {at(x_low, y)[1]:.1f}H{WIDTH - RIGHT}" class="g"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at(x_low, y)[1] + 4:.1f}" class="r">{y:.3g}</text>')
    ticks = sorted(set(xs)) if whole and len(set(xs)) <= 8 else [x_low + x_wide * step / 4 for step in range(5)]
    parts += [f'<text x="{at(x, y_low)[0]:.1f}" y="{HEIGHT - BOTTOM + 16}" class="m">{x:.3g}</text>' for x in ticks]
    parts.append(f'<text x="{LEFT + across / 2}" y="{HEIGHT - 4}" class="m">{escape(x_name)}</text>')
    for place, (name, found) in enumerate(series.items()):
        where = [at(x, y) for x, y in found]
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


def _svg(inside: str, height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
        f"{inside}</svg>"
    )


def _cut(text: str) -> str:
    return text if len(text) <= 24 else text[:23] + "…"
