"""What every group of options has in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, Strict

Text = Annotated[str, Strict(False)]
"""A text of the user's own, which may look like a number: a class may be called 0, a folder 2024."""


Trust = Annotated[
    bool, Field(description="true: import the classes of your own that a file names, which runs their code")
]


class Section(BaseModel):
    """A group of options; unknown keys are errors and values don't change after validation.

    A value is of its option's own type: true is no number, "3" and 3.0 are no whole numbers, 1 is not true.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        strict=True,
        coerce_numbers_to_str=True,
    )
