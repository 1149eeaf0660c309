"""What every part of a spec is: frozen, without unknown fields, and wrong values become sentences."""
import re
import unicodedata
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ..errors import UserError

MOST_PROBLEMS = 20
"""Lines of one error; files can have thousands of problems."""
MAXIMUM_SEED = 2**63 - 1
RESERVED_NAMES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in "123456789¹²³")}
"""Devices on Windows, whatever follows a dot behind them."""
LONGEST_NAME = 200
"""Bytes in UTF-8. Disks take names of 255; what is put behind the name of a run, "_step1000000-9999.safetensors" or
"-00001-of-00010.safetensors.index.json", has less than 50."""


def file_name(name: str) -> str:
    """A name that every disk and every loader takes, in one form of Unicode. Raises ValueError with a sentence."""
    name = unicodedata.normalize("NFC", name)
    # Letters of many scripts are written with marks (categories Mn and Mc), which \w leaves out.
    plain = "".join(each for each in name if unicodedata.category(each) not in ("Mn", "Mc"))
    if not re.fullmatch(r"[^\W_][\w .+\-]*", plain) or name[0] != plain[0] or name.endswith((" ", ".")):
        raise ValueError(
            f"{_short(repr(name), 60)} cannot name a run; use letters, digits, spaces and . _ + - only, "
            "begin with a letter or digit, end with no space or dot, and name no folders"
        )
    if name.split(".")[0].rstrip(" ").lower() in RESERVED_NAMES:
        raise ValueError(f"{name!r} cannot name a run, because Windows keeps {name.split('.')[0]!r} for a device; choose "
                         "another name")
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(f"{_short(repr(name), 60)} has {len(name.encode())} bytes, and names of files have room for "
                         f"{LONGEST_NAME}; shorten it")
    return name


Built = TypeVar("Built")
RunName = Annotated[str, Field(min_length=1, max_length=80), AfterValidator(file_name)]
"""Names a run's folder and its files."""


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def number(default: float, *, ge: float, le: float, step: float) -> Any:
    """A field for a float: its range, both ends included, and how far an arrow of its widget moves it."""
    return Field(default=default, ge=ge, le=le, json_schema_extra={"step": step})


def checked(build: Callable[..., Built], **fields: Any) -> Built:
    """Build a part of a spec, or raise one `UserError` that names every field that is wrong."""
    try:
        return build(**fields)
    except ValidationError as problem:
        raise UserError(explain(problem)) from None


def explain(problem: ValidationError) -> str:
    """The first problems of a pydantic error as sentences, one a line."""
    lines, errors = [], problem.errors(include_url=False)
    for error in errors[:MOST_PROBLEMS]:
        field = ".".join(_short(str(part)) for part in error["loc"])
        if error["type"] == "value_error":
            text = str(error.get("ctx", {})["error"])
            lines.append(f"{field}: {text}." if field else f"{text[0].upper()}{text[1:]}.")
        else:
            lines.append(f"{field} is {_short(repr(error['input']))}: {error['msg'].replace('Input should', 'it should')}.")
    if len(errors) > MOST_PROBLEMS:
        lines.append(f"There are {len(errors) - MOST_PROBLEMS} more problems.")
    return "\n".join(lines)


def _short(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[:most]}…"
