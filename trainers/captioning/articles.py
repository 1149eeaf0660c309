"""English articles by sound: a cat, an airplane, a unicorn, an hour, an X-ray, an 8-ball."""
import re
import unicodedata

_CONSONANT_SOUND = re.compile(r"eu|ewe|one\b|once\b|ubi|uk\b|ukulele|uni(?![mn]|d[^o])|ur[aio]|us[aeu]|ut[eio]|u\b")
"""Words that begin with a vowel in writing only: europe, one-eyed, unicorn, uranium, useful, utility, U-turn."""
_SILENT_H = re.compile(r"hour|honest|honou?r|heir")
_NUMBER = re.compile(r"8|1[18](?!\d)|1[18],?\d{3}(?!\d)")
"""eight…, eleven, eighteen, and so many thousands."""
_LETTERS_WITH_VOWEL = "AEFHILMNORSX"
"""Letters whose names begin with a vowel: ef, aitch, el, …"""
_SPELLED_OUT = frozenset({"LED", "SUV", "SOS", "MRI", "FBI", "NBA", "HIV", "RAF", "NES", "IRA"})
"""Words in capitals that are read letter by letter although they hold a vowel."""


def article(words: str) -> str | None:
    """"a" or "an", as it goes in front of some words; None where they do not begin with Latin letters or digits."""
    words = unicodedata.normalize("NFD", words)  # é begins like e
    first = re.match(r"[A-Za-z0-9]+", words)
    if first is None:
        return None
    if first[0][0].isdigit():
        return "an" if _NUMBER.match(words) else "a"
    word = first[0]
    spelled_out = len(word) == 1 or word in _SPELLED_OUT or (word.isupper() and not re.search("[AEIOUY]", word))
    if spelled_out:
        return "an" if word[0].upper() in _LETTERS_WITH_VOWEL else "a"
    rest = words.lower()
    vowel = (rest[0] in "aeiou" and not _CONSONANT_SOUND.match(rest)) or _SILENT_H.match(rest)
    return "an" if vowel else "a"


def with_article(before: str, words: str) -> str:
    """The text before some words, with its last word `a` or `an` as they sound."""
    found = re.search(r"(?<![^\s(\"'“])([Aa])n?(\s+)$", before)
    fitting = article(words) if found else None
    if not (found and fitting):
        return before
    return f"{before[:found.start()]}{found[1]}{'n' if fitting == 'an' else ''}{found[2]}"
