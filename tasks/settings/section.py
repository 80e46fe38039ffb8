"""What every section of the settings is made of."""

from __future__ import annotations

from typing import Annotated, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tasks.settings import secrets


class Section(BaseModel):
    """Base of every section: immutable; a typo is an error, and so is a number that is none (NaN, infinity), or an address
    with a password or token in it (tasks.settings.secrets): settings are shown and kept."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _no_secret(self) -> Self:
        for name in type(self).model_fields:
            if complaint := secrets.anywhere(getattr(self, name)):
                raise ValueError(f"{name}: {complaint}")
        return self


Item = TypeVar("Item")


def _no_repeats(values: list[Item]) -> list[Item]:
    for at, value in enumerate(values):
        if value in values[:at]:
            raise ValueError(f"{value!r} is named twice")
    return values


Distinct = AfterValidator(_no_repeats)
Share = Annotated[float, Field(gt=0, le=1)]
"""Of a data set's records: 1.0 is all, 0.2 a fifth."""
Percent = Annotated[int, Field(ge=0, le=100)]
"""A share in whole per cent, ends included."""
Decay = Annotated[float, Field(ge=0, lt=1)]
"""Share of a moving average that stays from one step to the next."""
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
"""What numpy and torch both take."""
Address = Annotated[
    str, Field(pattern=r"^https?://[^/]", json_schema_extra={"not": {"pattern": secrets.SCHEMA}})
]
