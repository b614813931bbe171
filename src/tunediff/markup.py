"""Small pieces of text and of HTML for notebooks: shares, tokens in shades, a histogram, a table. All text is escaped.

Texts come from corpora and from models and may hold anything: markup, control characters, characters that turn the
direction of what follows. Styles stand in the elements, and nothing is loaded, so that a saved notebook shows the same.
"""

import html
import math
import unicodedata
from collections.abc import Iterable, Sequence

SHADE = "230,115,0"  # of the strongest token; on white as on black, text in either colour stays readable over it
BOX = "font-family:system-ui,sans-serif;line-height:1.7;max-width:60em"
CODE = "font-family:ui-monospace,monospace;white-space:pre-wrap;unicode-bidi:isolate"
# controls, formats (those that turn the direction are among them), private use, surrogates, separators of lines
UNSEEN = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}


def per_cent(share: float, decimals: int = 0) -> str:
    """Return a share as a printed percentage, `–` where it is undefined."""
    return "–" if not math.isfinite(share) else f"{100 * share:.{decimals}f} %"


def firing_share(share: float) -> str:
    """Return a share of tokens as a printed percentage of two digits."""
    if not 0 < share < 0.0995:
        return per_cent(share)
    return f"{100 * share:.2g} %" if share >= 1e-6 else "< 0.0001 %"


def _shown(character: str) -> str:
    if character == "\n":
        return "↵"
    if unicodedata.category(character) not in UNSEEN:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def visible(text: str) -> str:
    """Return a text as a terminal may show it, in one line: a newline is ↵, a bidirectional control \\u202e."""
    return "".join(map(_shown, text))


def quoted(text: str) -> str:
    """Return a visible text in quotes, so that its spaces show."""
    return f'"{visible(text)}"'


def escape(text: str) -> str:
    """Return a text as it may stand in an element or in a quoted attribute."""
    return html.escape(visible(text), quote=True)


def tokens(
    texts: Sequence[str],
    strengths: Sequence[float],
    titles: Sequence[str],
    faint: Sequence[bool] = (),
    peak: int | None = None,
) -> str:
    """Return tokens one after the other, shaded by strengths from 0 to 1, each with a title shown under the pointer.

    `faint` are tokens that were left out; the one at `peak` is underlined.
    """
    spans = []
    for i, (text, strength, title) in enumerate(zip(texts, strengths, titles, strict=True)):
        style = "unicode-bidi:isolate"
        if strength > 0:
            style += f";border-radius:2px;background:rgba({SHADE},{0.1 + 0.6 * min(1.0, strength):.2f})"
        if faint and faint[i]:
            style += ";opacity:.45"
        if i == peak:
            style += ";text-decoration:underline"
        spans.append(f'<span style="{style}" title="{escape(title)}">{escape(text)}</span>')
    return f'<span style="{CODE}">{"".join(spans)}</span>'


def histogram(counts: Sequence[int], label: str) -> str:
    """Return an SVG of bars on a logarithmic scale; `label` says what is counted."""
    width, height, n = 200, 44, len(counts)
    top = math.log1p(max(counts, default=0)) or 1.0
    bars = []
    for i, count in enumerate(counts):
        tall = height * math.log1p(count) / top
        place = f'x="{i * width / n + 0.5:.1f}" y="{height - tall:.1f}" width="{width / n - 1:.1f}" height="{tall:.1f}"'
        bars.append(f'<rect {place} fill="rgb({SHADE})"><title>{i / n:.0%}–{(i + 1) / n:.0%}: {count:,}</title></rect>')
    line = f'<line x1="0" x2="{width}" y1="{height}" y2="{height}" stroke="currentColor" stroke-width="1"/>'
    size = f'width="{width}" height="{height + 1}" viewBox="0 0 {width} {height + 1}"'
    return f'<svg {size} role="img" aria-label="{escape(label)}">{"".join(bars)}{line}</svg>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; cells of `rows` are HTML already, those of the header are text."""
    cell = "text-align:left;padding:1px 10px 1px 0;vertical-align:top"
    head = "".join(f'<th style="{cell}">{escape(text)}</th>' for text in header)
    body = "".join("<tr>" + "".join(f'<td style="{cell}">{text}</td>' for text in row) + "</tr>" for row in rows)
    return f'<table style="border-collapse:collapse"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def details(summary: str, body: str, is_open: bool) -> str:
    """Return a part that can be folded; `body` is HTML, `summary` text."""
    return f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>{body}</details>"


def box(*parts: str) -> str:
    """Return parts below each other."""
    return f'<div style="{BOX}">{"".join(f"<div>{part}</div>" for part in parts if part)}</div>'
