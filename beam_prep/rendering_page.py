"""The page of `beam-prep render --html`: one file, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jinja2 import Environment

from beam_prep.inspection import Part, shorten, unit, visible
from beam_prep.rendering import Rendering, Row, raw_text

_MAX_CHARS = 50_000

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root {
  color-scheme: light dark;
  --paper: #fdfdfc; --ink: #1d1f23; --soft: #62676f; --line: #d9dbde; --panel: #f3f4f5;
  --control: #0b5cad; --control-back: #dcebfb; --rejected: #a3221c; --filtered: #855300;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #17191c; --ink: #e4e6e9; --soft: #9aa1aa; --line: #363a40; --panel: #202327;
    --control: #9ccbff; --control-back: #173a5e; --rejected: #ff938b; --filtered: #f0be6a;
  }
}
body { margin: 0 auto; padding: 1.5rem; max-width: 100rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .25rem; border-top: 1px solid var(--line); padding-top: 1rem; }
p, nav { margin: .25rem 0 1rem; color: var(--soft); }
a { color: var(--control); margin-right: 1rem; }
article { margin: 1rem 0; border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
header { padding: .4rem .8rem; background: var(--panel); font-size: .875rem; overflow-wrap: anywhere; }
.rejected b { color: var(--rejected); } .filtered b { color: var(--filtered); }
.sides { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); }
.sides > div { padding: .6rem .8rem; } .sides > div + div { border-left: 1px solid var(--line); }
h3 { font-size: .8rem; margin: 0 0 .3rem; color: var(--soft); font-weight: 600; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font: .8125rem/1.5 ui-monospace, monospace; }
mark { color: var(--control); background: var(--control-back); border-radius: 3px; padding: 0 .15em; }
i { color: var(--soft); }
@media (max-width: 50rem) {
  .sides { grid-template-columns: minmax(0, 1fr); }
  .sides > div + div { border-left: 0; border-top: 1px solid var(--line); }
}
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>Raw records on the left, what a model reads on the right. <mark>Control tokens</mark> become ids of their own; the
same characters without that mark are ordinary text. Tokens include one separator a document.</p>
{% if sources | length > 1 -%}
<nav>{% for source in sources %}<a href="#{{ source.name }}">{{ source.name }}</a>{% endfor %}</nav>
{%- endif %}
{% for source in sources %}
<h2 id="{{ source.name }}">{{ source.name }}</h2>
<p>{{ source.about }}</p>
{% for row in source.rows %}
<article class="{{ row.outcome }}">
<header><b>{{ row.head }}</b> {{ row.place }}</header>
<div class="sides">
<div><h3>record</h3><pre>{{ row.raw }}</pre></div>
<div><h3>{{ row.right }}</h3><pre>{% for part in row.parts %}{% if part.control %}<mark>{{ part.text }}</mark>\
{% else %}{{ part.text }}{% endif %}{% endfor %}</pre>{% if row.message %}<pre>{{ row.message }}</pre>{% endif %}</div>
</div>
</article>
{% endfor %}
{% endfor %}
</body>
</html>
"""


class _Article(NamedTuple):
    outcome: str
    head: str
    place: str
    right: str
    raw: str
    parts: list[Part]
    message: str


class _Section(NamedTuple):
    name: str
    about: str
    rows: list[_Article]


def page(title: str, renderings: Sequence[Rendering]) -> str:
    """The page as HTML; whatever stands in the data is escaped."""
    environment = Environment(autoescape=True, trim_blocks=False)
    sections = [_Section(r.source, about(r), [_article(row) for row in r.rows]) for r in renderings]
    return environment.from_string(_PAGE).render(title=title, sources=sections)


def about(rendering: Rendering) -> str:
    """One line on what was read."""
    counts = ", ".join(f"{count:,} {outcome}" for outcome, count in rendering.counts.items())
    total = sum(rendering.counts.values())
    which = f"all {total:,}" if rendering.complete else f"the first {total:,}"
    return f"Template {rendering.template}; of {which} records: {counts}."


def head(row: Row) -> str:
    """What became of a row."""
    if row.outcome == "rendered":
        return f"{row.chars:,} characters, {row.tokens:,} tokens"
    size = f" ({row.chars:,} characters, {row.tokens:,} tokens)" if row.tokens else ""
    return f"{row.outcome}: {row.reason}{size}"


def place(row: Row) -> str:
    """Where a row's record is."""
    return f"{row.file}, {unit(row.file)} {row.offset:,}"


def _article(row: Row) -> _Article:
    parts = [Part(visible(p.text), p.control) for p in shorten(row.parts, _MAX_CHARS)]
    raw = "".join(part.text for part in shorten([Part(raw_text(row.raw), False)], _MAX_CHARS))
    right = "rendered text" if row.parts else "no text"
    return _Article(row.outcome, head(row), place(row), right, visible(raw), parts, row.message)
