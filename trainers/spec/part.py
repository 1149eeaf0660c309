"""What every part of a spec is: frozen, without unknown fields, and wrong values become sentences."""
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ..errors import UserError

MOST_PROBLEMS = 20
"""Lines of one error; files can have thousands of problems."""
MAXIMUM_SEED = 2**63 - 1
RESERVED_NAMES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def _is_a_file_name(name: str) -> str:
    if not re.fullmatch(r"[^\W_][\w .+\-]*", name) or name.endswith((" ", ".")) or name.lower() in RESERVED_NAMES:
        raise ValueError(
            f"{name!r} cannot name a run; use letters, digits, spaces and . _ + - only, "
            "begin with a letter or digit, and name no folders"
        )
    return name


RunName = Annotated[str, Field(min_length=1, max_length=80), AfterValidator(_is_a_file_name)]
"""Names a run's folder and its files."""


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def checked(build, **fields: Any):
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
            text = str(error["ctx"]["error"])
            lines.append(f"{field}: {text}." if field else f"{text[0].upper()}{text[1:]}.")
        else:
            lines.append(f"{field} is {_short(repr(error['input']))}: {error['msg'].replace('Input should', 'it should')}.")
    if len(errors) > MOST_PROBLEMS:
        lines.append(f"There are {len(errors) - MOST_PROBLEMS} more problems.")
    return "\n".join(lines)


def _short(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[:most]}…"
