"""Text for the page: nothing in it is markup to any frontend, and everything in it can be read."""
import re
from html.parser import HTMLParser

import pytest
from finetune.trainers.page_text import LONGEST_LINE, MOST_LINES, page_text
from host_events import plain
from hypothesis import example, given
from hypothesis import strategies as st

MARKUP = ("<img src=x onerror=alert(1)>", "</div><script>alert(1)</script>", "&lt;b&gt; &#60; &amp;", "a < b > c & d",
          "<br>",
          "[[words|https://example.org]]", "[words](https://example.org)", "![x](https://example.org/x.png)", "__LNK0__",
          "see https://example.org/a?b=c&d or www.example.org or a@example.org", "# head", "- item", "1. item", "> quote",
          "    code", "`code` **bold** _it_ ~~gone~~", "a | b | c", "\\*", "<!-- x", "<div style='x", "ftp://x file:///etc")
LINKS = re.compile(r"""(\b(https?|ftp|file):\/\/[-A-Z0-9+&@#/%?=~_|!:,.;]*[-A-Z0-9+&@#/%?=~_|])|
                       (\bwww\.[-A-Z0-9+&@#/%?=~_|!:,.;]*[-A-Z0-9+&@#/%?=~_|])|\[\[[^|\]]+\|[^\]]+\]\]|__LNK\d+__""",
                   re.IGNORECASE | re.VERBOSE)
"""What the frontends make links of, as it stands in their formatUtil.ts and TextPreviewWidget.vue."""
MARKDOWN = re.compile(r"[`*_~\[\]\\|#]")


class Reader(HTMLParser):
    """Tags and text of HTML."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.tags, self.text = [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.text += "\n" * (tag == "br")

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        self.tags.append("comment")


def check(text: str) -> str:
    html = page_text(text)
    read = Reader(html)
    assert read.tags[0] == "div" and set(read.tags[1:]) <= {"br"} and html.count("</div>") == 1 and html.endswith("</div>")
    inner = html[html.index(">") + 1:]
    assert not LINKS.search(inner) and not MARKDOWN.search(re.sub(r"&#\d+;", "", inner)) and "\n" not in html
    assert plain(html) == read.text
    return read.text


@pytest.mark.parametrize("text", MARKUP)
def test_markup_is_text(text):
    assert check(text) == text.strip()
    assert check(f"before {text}\nafter") == f"before {text.rstrip()}\nafter"


@given(st.text() | st.lists(st.sampled_from((*MARKUP, "\n", "w", "www", ".", "[", "_", ":", "//", "&", ";"))).map("".join))
@example("www" + "ẃ.x")
def test_no_text_is_markup(text):
    check(text)


def test_what_is_no_text_does_not_come_through():
    assert check("a\x00b\x1b[31mc\udcffd\u202egnp.exe\x85e\n\n\nf\tg") == "abcdgnp.exe\ne\nf g"
    page_text("\ud800").encode("utf-8")


def test_a_long_text_is_cut_and_says_so():
    lines = check("\n".join(f"line {number}" for number in range(500))).splitlines()
    assert len(lines) == MOST_LINES and lines[-2:] == [f"line {MOST_LINES - 2}", f"… and {500 - MOST_LINES + 1} more lines"]
    assert check("x" * 1_000_000) == "x" * LONGEST_LINE + "…"
    assert len(check("\n".join("y" for _ in range(MOST_LINES))).splitlines()) == MOST_LINES
    assert check("\n".join("y" for _ in range(MOST_LINES + 1))).splitlines()[-2:] == ["y", "… and 2 more lines"]
