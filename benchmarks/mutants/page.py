"""Text on its way to the page."""
from .mutation import Mutation

TEXT = "trainers/page_text.py"
TESTS = "unit/test_page_text.py"

MUTATIONS = [
    Mutation("text reaches the page as HTML", TEXT,
             'escaped = (_MEANINGFUL.sub(lambda sign: f"&#{ord(sign[0])};", line) for line in cut)',
             "escaped = cut", "unit/test_page_text.py::test_markup_is_text"),
    Mutation("marks of Markdown keep their meaning", TEXT,
             '[&<>"\'`\\[\\]*_~#|\\\\@]', '[&<>"\']', "unit/test_page_text.py::test_markup_is_text"),
    Mutation("addresses become links", TEXT, "|:(?=//)|", "|", "unit/test_page_text.py::test_markup_is_text"),
    Mutation("a text of any length is shown", TEXT,
             "    if len(lines) > MOST_LINES:\n",
             "    if False:\n", "unit/test_page_text.py::test_a_long_text_is_cut_and_says_so"),
    Mutation("a line of any length is shown", TEXT,
             'line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + "…"',
             "line", "unit/test_page_text.py::test_a_long_text_is_cut_and_says_so"),
]
