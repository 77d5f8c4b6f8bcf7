"""The server that is looked at, and what the suite was told of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Target:
    """A server; the options of `conftest.py` say what each field is for."""

    base_url: str
    # Keys are in no traceback.
    api_key: str = field(repr=False)
    other_api_key: str | None = field(default=None, repr=False)
    rate_limited_api_key: str | None = field(default=None, repr=False)
    token_limited_api_key: str | None = field(default=None, repr=False)
    model: str = ""
    slow_prompt: str = ""
    bad_body: Mapping[str, Any] = field(default_factory=dict)
    patience_seconds: float = 600

    @property
    def secrets(self) -> list[str]:
        keys = (self.api_key, self.other_api_key, self.rate_limited_api_key, self.token_limited_api_key)
        return [key for key in keys if key]
