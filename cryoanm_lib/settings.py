"""The kind of record that settings are kept in: unknown keys are refused, values are never coerced."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, lt=2**63)]


class Section(BaseModel):
    """A group of settings, checked when it is made and fixed from then on."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
