"""The base of every object that a request may hold."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """An object of a request: nothing else in it, and no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
