"""Words in captions and prompts: THE rule for "the text holds the word", and text as people get to see it.

A word is found whatever its case, whatever punctuation is around it, however its accents are encoded (composed, NFC, or
taken apart, NFD) and whatever white space is between its parts, but not as a part of a longer word. A hyphen with a letter
behind it makes a longer word: `ohwx-like` does not hold `ohwx`; `- ohwx -` and `ohwx's` do.

Scripts that put no spaces between words have no longer words to be part of: `猫` is in `白い猫の写真`, and `ohwx` in
`ohwx猫`. Korean counts as one of them, because particles are attached to its words.
"""
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import islice

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\uaa60-\uaadf"  # Thai, Lao, Burmese, Khmer, Tai
    "\u3005-\u3007\u3021-\u3029\u3031-\u3035\u303b\u3041-\u312f\u31a0-\u31bf\u31f0-\u31ff\uff66-\uff9f"  # kana, bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff\uffa0-\uffdc"  # Hangul
)
"""Scripts without spaces between words: those of Unicode's line breaking classes SA and ID (annex 14), and Hangul."""
_SIGNS = (
    "\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1-\u05c2\u05c4-\u05c5\u05c7\u0610-\u061a\u064b-\u065f\u0670"
    "\u06d6-\u06dc\u06df-\u06e4\u06e7-\u06e8\u06ea-\u06ed\u0711\u0730-\u074a\u0900-\u0903\u093a-\u093c\u093e-\u094f"
    "\u0951-\u0957\u0962-\u0963\u0981-\u0983\u09bc\u09be-\u09cd\u09d7\u0a01-\u0a03\u0a3c-\u0a51\u0a70-\u0a71\u0a81-\u0a83"
    "\u0abc\u0abe-\u0acd\u0b01-\u0b03\u0b3c\u0b3e-\u0b57\u0b82\u0bbe-\u0bcd\u0bd7\u0c00-\u0c04\u0c3e-\u0c56\u0c81-\u0c83"
    "\u0cbc\u0cbe-\u0cd6\u0d00-\u0d03\u0d3b-\u0d3c\u0d3e-\u0d4d\u0d57\u0d82-\u0d83\u0dca-\u0ddf\u0f71-\u0f84\u1ab0-\u1aff"
    "\u1dc0-\u1dff\u200c-\u200d\u20d0-\u20ff\ufe20-\ufe2f"
)
"""Accents, vowel signs and joiners, which \\w leaves out: they belong to the letter before them."""
_UNSPACED_SIGNS = (
    "\u0e31\u0e33-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb3-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u17b4-\u17d3\u302a-\u302f\u3099-\u309a"
    "\uff9e-\uff9f\u1160-\u11ff"
)
"""The same in scripts without spaces, vowels and finals of Hangul that is taken apart among them."""
_LETTER = rf"(?:[^\W{_UNSPACED}]|[{_SIGNS}])"
_letter = re.compile(_LETTER).match
_goes_on = re.compile(rf"-?{_LETTER}|[{_UNSPACED_SIGNS}]").match
_sign = re.compile(f"[{_SIGNS}{_UNSPACED_SIGNS}]").match
_clusters = re.compile(rf".[{_SIGNS}{_UNSPACED_SIGNS}]*", re.DOTALL).findall
_words = re.compile(rf"{_LETTER}+(?:['’-]{_LETTER}+)*|[{_UNSPACED}]+").findall


class WholeWord:
    """Finds a word, or words in a row, with the methods of a compiled pattern. Where the word itself ends in punctuation
    (`<cat-toy>`, `(ohwx)`, `c++`), that ends it, whatever follows. An empty word is found nowhere."""

    def __init__(self, word: str, match_case: bool = False):
        """Blanks around `word` are looked for too."""
        bare = word.strip()
        lead, rest = word[:len(word) - len(word.lstrip())], word[len(word.rstrip()):]
        middle = r"\s+".join("".join(map(_in_any_form, _clusters(part))) for part in bare.split())
        pattern = f"{re.escape(lead)}{middle}{re.escape(rest)}" if bare else r"(?!)"
        self._pattern = re.compile(pattern, 0 if match_case else re.IGNORECASE)

    def finditer(self, text: str) -> Iterator[re.Match]:
        place = 0
        while found := self._pattern.search(text, place):
            whole = is_whole(text, *found.span())
            place = found.end() if whole else found.start() + 1
            if whole:
                yield found

    def search(self, text: str) -> re.Match | None:
        return next(self.finditer(text), None)

    def match(self, text: str) -> re.Match | None:
        """The word at the front of a text."""
        found = self._pattern.match(text)
        return found if found and is_whole(text, *found.span()) else None

    def fullmatch(self, text: str) -> re.Match | None:
        """The text, where it is the word and nothing else."""
        found = self.match(text)
        return found if found and found.end() == len(text) else None

    def sub(self, replacement: str | Callable[[re.Match], str], text: str, count: int = 0) -> str:
        """The text with the word replaced, the first `count` times or always. A string is put there as it is."""
        pieces, place = [], 0
        for found in islice(self.finditer(text), count or None):
            pieces += [text[place:found.start()], replacement(found) if callable(replacement) else replacement]
            place = found.end()
        return "".join([*pieces, text[place:]])


def is_whole(text: str, start: int, end: int) -> bool:
    """Whether what stands there, which is not empty, is no part of a longer word."""
    if start and _letter(text, start) and _letter(text, start - (2 if text[start - 1] == "-" and start > 1 else 1)):
        return False
    return not (_goes_on(text, end) if _letter(text, end - 1) else _sign(text, end))


@lru_cache(maxsize=10_000)
def whole_word(word: str) -> WholeWord:
    return WholeWord(word.strip())


def holds(text: str, word: str) -> bool:
    return whole_word(word).search(text) is not None


def _in_any_form(cluster: str) -> str:
    """A pattern for a letter with its accents as it is, composed, or taken apart."""
    forms = sorted({cluster, unicodedata.normalize("NFC", cluster), unicodedata.normalize("NFD", cluster)})
    return re.escape(cluster) if len(forms) == 1 else f"(?:{'|'.join(map(re.escape, forms))})"


def folded(text: str) -> str:
    """A text as it is compared where it has to be equal as a whole: without case, with composed accents."""
    return unicodedata.normalize("NFC", text).casefold()


def words_of(text: str) -> list[str]:
    """The words of a text without case. In scripts without spaces, what stands between other signs is one word."""
    return _words(folded(text))


def spaceless(text: str) -> bool:
    """Whether a text begins in a script that puts no spaces between words."""
    return re.match(f"[{_UNSPACED}]", text) is not None


# ---- text that people see ------------------------------------------------------------------------------------------

def one_line(text: str) -> str:
    """Text without line breaks, double spaces, control characters and halves of characters that JSON can hold."""
    whole = text.encode("utf-8", errors="replace").decode("utf-8")
    return " ".join("".join(" " if unicodedata.category(sign) == "Cc" else sign for sign in whole).split())


def printable(name: str) -> str:
    """A name without line breaks and other signs that cannot be seen, such as those that turn the reading direction."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in name)


def shown(name: str) -> str:
    """A name for a sentence."""
    plain = printable(name)
    return plain if len(plain) <= 80 else f"{plain[:50]}…{plain[-20:]}"


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first of some names."""
    return ", ".join([*map(shown, names[:most]), *[f"and {len(names) - most} more"][:len(names) > most]])


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 image`, `2 images`, `1,500 images`; `plural` where it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def clause(number: int, noun: str, predicate: str, of: int = 0) -> str:
    """`1 image has no mask`, `2 images have no mask`, `1 of 3 images has no mask`: `predicate` is for several."""
    subject = f"{number:,} of {counted(of, noun)}" if of else counted(number, noun)
    verb, _, rest = predicate.partition(" ")
    if number == 1:
        verb = {"are": "is", "were": "was", "have": "has", "do": "does", "cannot": "cannot"}.get(verb, f"{verb}s")
    return f"{subject} {verb} {rest}"
