"""Text as ComfyUI's page shows it on a node. Captions, names and messages come from files of unknown origin.

The frontend puts progress text into the page as HTML (1.32.9 as it is, 1.49.6 freed of all but links and line breaks), makes
links of addresses and of [[words|address]], and in its Vue renderer reads it as Markdown, which drops single line breaks. So
what has a meaning to any of them is written as a number of HTML, which all of them show as the character.
"""
import re

from .errors import plain_lines

MOST_LINES, LONGEST_LINE = 60, 600
"""A node is no place to read more; the reports that nodes give out are whole."""
BOX = '<div class="finetune-text">'
"""A block of HTML, which keeps Markdown from being read. `web/js/node_texts.js` limits its height: the Vue renderer would
make a node as high as its text."""
_MEANINGFUL = re.compile(r"""[&<>"'`\[\]*_~#|\\@]|:(?=//)|(?<=\bwww)\.""", re.IGNORECASE)


def page_text(text: str) -> str:
    """`text` as HTML that shows its lines as they are, on every frontend; at most MOST_LINES lines."""
    lines = plain_lines(text)
    if len(lines) > MOST_LINES:
        lines[MOST_LINES - 1:] = [f"… and {len(lines) - MOST_LINES + 1} more lines"]
    cut = (line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + "…" for line in lines)
    escaped = (_MEANINGFUL.sub(lambda sign: f"&#{ord(sign[0])};", line) for line in cut)
    return f"{BOX}{'<br>'.join(escaped)}</div>"
