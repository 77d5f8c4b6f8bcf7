"""Input files for tests."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def request(custom_id: str, prompt: str = "hello", **body: Any) -> dict[str, Any]:
    """Return one valid chat request for the scripted engine; `body` overrides."""
    full = {"model": "scripted", "messages": [{"role": "user", "content": prompt}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": full}


def jsonl(requests: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in requests)


def numbered(count: int, prompt: Callable[[int], str] = lambda number: f"text {number}") -> bytes:
    return jsonl(request(f"row-{number}", prompt(number)) for number in range(count))


def gated(gate: Path, free: int = 0) -> Callable[[int], str]:
    """Return prompts that the scripted engine answers only when `gate` is there, but for the first `free` of them."""
    return lambda number: f"text {number}" if number < free else f"AWAIT {gate} {number}"


def parse(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.splitlines()]
