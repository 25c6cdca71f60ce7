"""A line chart as SVG: axes from zero, a line per series, readable on light and on dark pages. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 176, 36, 44
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#8c8c8c")  # told apart by colour-blind people too, on white and on black
STYLE = (
    "text{font:12px sans-serif;fill:#333}.axis{stroke:#999}.grid{stroke:#ddd}.title{font-weight:bold}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.axis{stroke:#777}.grid{stroke:#333}}"
)


@dataclass(frozen=True, slots=True)
class Series:
    """A line and its name. `is_dashed`: what would be, not what was measured."""

    name: str
    points: Sequence[tuple[float, float]]
    is_dashed: bool = False


def line_chart(title: str, x_name: str, y_name: str, series: Sequence[Series]) -> str:
    """The whole file. At least one point; x values are marked where there are points, spaced as numbers are."""
    xs = sorted({x for one in series for x, _ in one.points})
    top = _rounded_up(max(y for one in series for _, y in one.points))
    x_low, x_high = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return LEFT + across, HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="18">{escape(title)}</text>',
    ]
    for step in range(5):
        value = top * step / 4
        _, y = place(x_low, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text text-anchor="end" x="{LEFT - 8}" y="{y + 4:.1f}">{value:g}</text>')
    bottom = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    last_label = -float(WIDTH)
    for x in xs:
        across, _ = place(x, 0)
        if across - last_label >= 18:  # labels that would lie on each other are left out
            parts.append(f'<text text-anchor="middle" x="{across:.1f}" y="{bottom + 16}">{x:g}</text>')
            last_label = across
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text text-anchor="middle" x="{middle:.1f}" y="{HEIGHT - 8}">{escape(x_name)}</text>')
    parts.append(
        f'<text text-anchor="middle" transform="translate(14 {(TOP + bottom) / 2:.1f}) rotate(-90)">'
        f"{escape(y_name)}</text>"
    )
    for index, one in enumerate(series):
        colour = COLOURS[index % len(COLOURS)]
        dashes = ' stroke-dasharray="5 4"' if one.is_dashed else ""
        places = [place(x, y) for x, y in one.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2"{dashes} points="{path}"/>')
        if not one.is_dashed:
            parts += [f'<circle r="3.5" fill="{colour}" cx="{x:.1f}" cy="{y:.1f}"/>' for x, y in places]
        left, line = WIDTH - RIGHT + 12, TOP + 8 + 20 * index
        ends = f'x1="{left}" x2="{left + 20}" y1="{line}" y2="{line}"'
        parts.append(f'<line stroke="{colour}" stroke-width="2"{dashes} {ends}/>')
        parts.append(f'<text x="{left + 26}" y="{line + 4}">{escape(one.name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _rounded_up(value: float) -> float:
    """To a number that quarters well."""
    step = 1.0
    while value > 40 * step:
        step *= 10
    while value <= 4 * step:
        step /= 10
    return 4 * step * -(-value // (4 * step))
