"""The report's plots: matplotlib figures as inline SVG.

They are narrow enough for a phone and scale up. Colours are the page's, by CSS variables, so that they follow light and
dark. Equal input gives equal text: no date, ids from a fixed salt.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from beam_prep.inspection import visible
from beam_prep.report_distributions import BINS_PER_DOUBLING, LENGTH_BINS, RATE_BINS, length_of, quantile, rate_of

WIDTH = 360
"""Points, of every figure."""
GAP = "none"
"""Colour of a part that only moves the next one to the right."""
_ROW = 32
_RIDGE = 46
_FONT = 11.5
_AXIS = 38

# Stand-ins that become `var(--NAME)`; no figure uses a colour of its own.
_COLOURS = {
    name: f"#{number:02x}e0{number:02x}"
    for number, name in enumerate(
        ("ink", "soft", "line", "kept", "sampled", "duplicates", "filtered", "rejected", "mark"), start=0x11
    )
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "beam-prep",
    "font.size": _FONT,
    "font.family": "DejaVu Sans",
    "text.parse_math": False,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "path.simplify": False,
}
_ID = re.compile(r' id="([^"]*)"')
_USED_ID = re.compile(r'(?:url\(#|href="#)([^")]+)')
_LONG_NUMBER = re.compile(r"(\.\d\d)\d+")
_LEAST_WIDTH = 0.4
"""Per cent: a part that is there can be seen."""


class Bar(NamedTuple):
    """One row of a bar chart."""

    label: str
    value: str
    """What the row says on its right."""
    parts: tuple[tuple[str, float], ...]
    """Colour and width, in the axis's unit, from the left."""
    mark: float | None = None
    """Where a line stands, such as what was asked for."""


class Ridge(NamedTuple):
    """One row of distributions."""

    label: str
    value: str
    counts: np.ndarray


def bars(name: str, title: str, description: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars, stacked where a row has several parts; labels above the bars."""
    figure, axes = _figure(len(rows) * _ROW + 4, 0)
    widest = max((sum(width for _, width in row.parts) for row in rows), default=0)
    widest = max([widest, *(row.mark for row in rows if row.mark is not None)]) or 1
    for number, row in enumerate(rows):
        _label(axes, number, row.label, row.value)
        at = 0.0
        for colour, width in row.parts:
            if width and colour != GAP:
                # Wide enough to be seen, at the cost of some hundredths of a per cent of the rest.
                axes.barh(number + 0.75, max(width, widest * _LEAST_WIDTH / 100), 0.3, at, color=_COLOURS[colour])
            at += width
        if row.mark is not None:
            axes.plot([row.mark, row.mark], [number + 0.54, number + 0.96], color=_COLOURS["mark"], linewidth=2)
    axes.set_xlim(0, widest * 1.005)
    axes.set_ylim(max(1, len(rows)), 0)
    axes.set_axis_off()
    return _svg(figure, name, title, description)


def lengths(name: str, title: str, description: str, rows: Sequence[Ridge], contexts: Sequence[int]) -> str:
    """Distributions of documents' lengths, one below the other on a common logarithmic axis.

    Args:
      contexts: context lengths, drawn as lines.
    """
    there = np.nonzero(np.sum([row.counts for row in rows], axis=0))[0]
    ends = [np.log2(context) * BINS_PER_DOUBLING for context in contexts]
    low = max(0.0, min([there[0], *ends]) - BINS_PER_DOUBLING / 2)
    high = min(float(LENGTH_BINS), max([there[-1] + 1, *ends]) + BINS_PER_DOUBLING / 2)
    every = 1 if high - low < 7 * BINS_PER_DOUBLING else 2 if high - low < 14 * BINS_PER_DOUBLING else 4
    step = BINS_PER_DOUBLING * every
    ticks = [tick for tick in range(0, LENGTH_BINS + 1, step) if low <= tick <= high]
    names = [_short(length_of(tick)) for tick in ticks]
    return _ridges(name, title, description, rows, (low, high), ticks, names, "tokens", ends)


def _short(tokens: float) -> str:
    whole = round(tokens)
    for worth, unit in ((30, "G"), (20, "M"), (10, "k")):
        if whole >> worth:
            return f"{whole >> worth}{unit}"
    return str(whole)


def rates(name: str, title: str, description: str, rows: Sequence[Ridge]) -> str:
    """Distributions of tokens per byte, one below the other."""
    there = np.nonzero(np.sum([row.counts for row in rows], axis=0))[0]
    low, high = float(max(0, there[0] - 3)), float(min(RATE_BINS, there[-1] + 4))
    step = 5 if high - low < 30 else 10 if high - low < 70 else 20
    ticks = [tick for tick in range(0, RATE_BINS + 1, step) if low <= tick <= high]
    names = [f"{rate_of(tick):.2g}" for tick in ticks]
    return _ridges(name, title, description, rows, (low, high), ticks, names, "tokens per byte of text", [])


def _ridges(
    name: str,
    title: str,
    description: str,
    rows: Sequence[Ridge],
    limits: tuple[float, float],
    ticks: Sequence[float],
    tick_names: Sequence[str],
    unit: str,
    marks: Sequence[float],
) -> str:
    figure, axes = _figure(len(rows) * _RIDGE + _AXIS, _AXIS)
    axes.vlines(ticks, 0, len(rows), color=_COLOURS["line"], linewidth=0.6)
    axes.vlines(marks, 0, len(rows), color=_COLOURS["mark"], linewidth=1.4, linestyle=(0, (4, 3)))
    for number, row in enumerate(rows):
        _label(axes, number, row.label, row.value, _RIDGE)
        base = number + 0.98
        heights = row.counts / max(1, row.counts.max()) * 0.6
        edges = np.arange(len(heights) + 1, dtype=float)
        there = np.nonzero(heights)[0]
        if len(there):
            part = slice(int(there[0]), int(there[-1]) + 1)
            edges = edges[part.start : part.stop + 1]
            # As steps by hand: a filled line has half the points of `stairs` and the same look.
            outline = np.repeat(edges, 2)[1:-1]
            axes.fill_between(outline, base - np.repeat(heights[part], 2), base, color=_COLOURS["kept"], linewidth=0)
            middle = quantile(row.counts, 0.5)
            axes.plot([middle, middle], [base - 0.6, base], color=_COLOURS["ink"], linewidth=1.6)
        axes.axhline(base, color=_COLOURS["line"], linewidth=0.8)
    axes.set_xlim(*limits)
    axes.set_ylim(max(1, len(rows)), 0)
    axes.set_yticks([])
    axes.set_xticks(ticks, tick_names)
    axes.set_xlabel(unit, color=_COLOURS["soft"], labelpad=2)
    axes.tick_params(axis="x", colors=_COLOURS["soft"], length=3, pad=2)
    axes.spines["bottom"].set_color(_COLOURS["line"])
    return _svg(figure, name, title, description)


def _figure(height: float, below: float) -> tuple[Figure, Any]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        FigureCanvasSVG(figure)
        side = 0.028 if below else 0.0
        axes = figure.add_axes((side, below / height, 1 - 2 * side, 1 - below / height))
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
    return figure, axes


def _label(axes: Any, number: int, label: str, value: str, row_height: int = _ROW) -> None:
    high = number + 9.5 / row_height
    across = axes.get_yaxis_transform()
    more = {"transform": across, "va": "center_baseline", "parse_math": False, "fontsize": _FONT}
    axes.text(0, high, _one_line(label), ha="left", color=_COLOURS["ink"], **more)
    axes.text(1, high, _one_line(value), ha="right", color=_COLOURS["soft"], **more)


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()))


def _svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an `<svg>` element, named for those who do not see it."""
    text = io.StringIO()
    empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({**_STYLE, "svg.hashsalt": f"beam-prep {name}"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's fonts draw the text, not matplotlib's
        figure.savefig(text, format="svg", transparent=True, metadata=empty)
    body = text.getvalue()
    body = body[body.index("<svg") :]
    # Metadata and a style that would hold for the whole page; then ids that nothing refers to, and which would clash.
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", body, flags=re.S)
    body = re.sub(r' d="[^"]*"', lambda path: _LONG_NUMBER.sub(r"\1", path[0]), body)
    used = set(_USED_ID.findall(body))
    body = _ID.sub(lambda found: found[0] if found[1] in used else "", body)
    for colour, stand_in in _COLOURS.items():
        body = body.replace(stand_in, f"var(--{colour})")
    view = re.search(r'viewBox="[^"]*"', body)
    assert view is not None, "matplotlib writes one"
    inside = body[body.index(">") + 1 :]
    told = "".join(
        f'<{tag} id="{name}-{tag}">{escape(visible(words))}</{tag}>'
        for tag, words in (("title", title), ("desc", description))
    )
    opening = (
        f'<svg role="img" aria-labelledby="{name}-title {name}-desc" {view[0]} '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return re.sub(r"\n\s*", "\n", f"{opening}{told}{inside}").strip()
