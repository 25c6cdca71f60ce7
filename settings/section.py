"""What every section of the settings is made of: kinds of numbers, and that a misspelt knob is an error."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0)]
Milliseconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Limit = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """One section of the settings; a misspelt knob inside it is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
