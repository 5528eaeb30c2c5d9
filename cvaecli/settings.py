"""The base class of all settings: a config's sections, and each model's own."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A group of settings. Unknown keys, NaN and infinity are refused; instances are immutable."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        coerce_numbers_to_str=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic would read ``epochs: true`` as 1, and ``levels: [true]`` as [1]."""
        values = value if isinstance(value, list | tuple) else [value]
        if (
            any(isinstance(one, bool) for one in values)
            and cls.model_fields[info.field_name or ""].annotation is not bool
        ):
            raise PydanticCustomError("switch", "input is a switch, and this key is not one")
        return value
