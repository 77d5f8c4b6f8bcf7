"""Lines of input files, and what comes back."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

CHAT = "/v1/chat/completions"


class Rows:
    """Makes requests for the one model of the server."""

    def __init__(self, model: str) -> None:
        self._model = model

    def row(self, custom_id: str, prompt: str = "Say hello.", max_tokens: int = 8, **body: Any) -> dict[str, Any]:
        """Return one valid chat request; `body` overrides."""
        messages = [{"role": "user", "content": prompt}]
        full = {"model": self._model, "messages": messages, "max_tokens": max_tokens, **body}
        return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": full}

    def rows(self, count: int, prefix: str = "row") -> list[dict[str, Any]]:
        return [self.row(f"{prefix}-{number}") for number in range(count)]

    def data(self, count: int) -> bytes:
        """Return a valid input file."""
        return jsonl(self.rows(count))


def jsonl(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def without(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def parse(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.split(b"\n") if line]
