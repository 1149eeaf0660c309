"""What every part of a spec is: frozen, without unknown fields, and wrong values become sentences."""
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import UserError

MAXIMUM_SEED = 2**63 - 1


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def checked(build, **fields: Any):
    """Build a part of a spec, or raise one `UserError` that names every field that is wrong."""
    try:
        return build(**fields)
    except ValidationError as problem:
        raise UserError(explain(problem)) from None


def explain(problem: ValidationError) -> str:
    """All problems of a pydantic error as sentences, one a line."""
    lines = []
    for error in problem.errors(include_url=False):
        field = ".".join(str(part) for part in error["loc"])
        if error["type"] == "value_error":
            text = str(error["ctx"]["error"])
            lines.append(f"{field}: {text}." if field else f"{text[0].upper()}{text[1:]}.")
        else:
            lines.append(f"{field} is {error['input']!r}: {error['msg'].replace('Input should', 'it should')}.")
    return "\n".join(lines)
