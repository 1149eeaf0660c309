"""Failures that are explained to the person at the graph."""
import re

TERMINAL_CODES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]")
"""Colors and titles that libraries send to a terminal: control sequences, operating system commands and the short ones of
ECMA-48."""


class UserError(Exception):
    """A problem that the user can solve. Its text says what is wrong, in which field or file, and what to do."""


class Cancelled(BaseException):
    """The run was stopped on request, after its work was saved. No Exception: whoever explains all errors of a library, or
    goes on in spite of them, shall not catch it."""


def reason_of(problem: BaseException, most: int = 300) -> str:
    """What a foreign error says, as a piece of a sentence: the first line of its message that says anything, at most `most`
    characters; the name of its type where it has no message."""
    return next(iter(plain_lines(str(problem))), type(problem).__name__)[:most]


def plain_lines(text: str) -> list[str]:
    """The lines of foreign text that say anything, without terminal codes, control characters and what is no Unicode."""
    lines = TERMINAL_CODES.sub("", text).splitlines()
    plain = ("".join(each if each.isprintable() else " " if each.isspace() else "" for each in line).strip()
             for line in lines)
    return [line for line in plain if line]
