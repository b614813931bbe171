"""HTML for notebooks: every text escaped, every character visible, shades and bars in proportion."""

import math
import re
from html.parser import HTMLParser

import pytest

from tunediff import markup


class Read(HTMLParser):
    """What a browser makes of a page: tags, attributes, text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!--",
    '" onmouseover="x',
    "' & &lt;",
    "\u202eabc\u2066",
    "\u2028",
    "\0",
)

TAGS = {
    *["div", "span", "svg", "rect", "title", "line", "details", "summary", "table", "thead", "tbody", "tr", "th", "td"]
}


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_text(text: str) -> None:
    page = markup.box(markup.escape(text), markup.tokens([text], [1.0], [text]), markup.histogram([1], text))
    page += markup.details(text, markup.table([text], [[markup.escape(text)]]), True)
    read = Read(page)
    assert set(read.tags) <= TAGS
    known = {"style", "open", "title", "width", "height", "viewbox", "role", "aria-label", "fill"}
    known |= {"x", "y", "x1", "x2", "y1", "y2", "stroke", "stroke-width"}
    assert {name for name, _ in read.attributes} <= known
    assert read.text.count(markup.visible(text)) == 5
    assert ("title", markup.visible(text)) in read.attributes


def test_every_character_is_visible() -> None:
    assert markup.visible("a\n\tb c\u00ad\u200f\x1b[0m\U000e0001") == r"a↵\x09b c\xad\u200f\x1b[0m\U000e0001"
    assert markup.visible("Zürich 東京 👍") == "Zürich 東京 👍"


def test_shades_grow_with_strength_and_stop_at_one() -> None:
    page = markup.tokens(list("abcd"), [0, 0.5, 1, 9], list("wxyz"), [True, False, False, False])
    alphas = [float(alpha) for alpha in re.findall(r"rgba\(\d+,\d+,\d+,([\d.]+)\)", page)]
    assert alphas == [0.4, 0.7, 0.7] and page.count("opacity") == 1


def test_bars_are_logarithmic() -> None:
    page = markup.histogram([0, 9, 99], "firings")
    heights = [float(height) for height in re.findall(r'<rect [^>]* height="([\d.]+)"', page)]
    assert heights == pytest.approx([0, 44 * math.log(10) / math.log(100), 44], abs=0.06)
    assert "33%–67%: 9" in page and 'aria-label="firings"' in page
    assert markup.histogram([0, 0], "none").count("<rect") == 2
