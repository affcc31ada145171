"""What a setting is: a type, a default, and where the default comes from."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A group of settings: frozen, and an unknown key is an error rather than a new key."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def paper(default: Any, section: str, text: str, **limits: Any) -> Any:
    """A setting whose default is printed in the paper."""
    return Field(default, description=text, json_schema_extra={"source": f"paper {section}"}, **limits)


def ours(default: Any, text: str, why: str = "the paper is silent", **limits: Any) -> Any:
    """A setting whose default is our choice, with the reason."""
    return Field(default, description=text, json_schema_extra={"source": f"ours: {why}"}, **limits)


Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
DURATION = r"^[0-9]+(\.[0-9]+)?(s|min|h)$"
Duration = Annotated[str, Field(pattern=DURATION)]
RUN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

SPELT = {
    DURATION: "must be a time such as 90s, 10min or 1.5h",
    RUN: "use letters, digits, `.`, `_` or `-`, beginning with a letter or digit",
}
"""What is said of a text that does not match one of these."""


def seconds(duration: str) -> float:
    """A Duration in seconds: `90s`, `10min`, `1.5h`."""
    number, unit = re.fullmatch(r"([0-9.]+)(s|min|h)", duration).groups()  # type: ignore[union-attr]
    return float(number) * {"s": 1, "min": 60, "h": 3600}[unit]
