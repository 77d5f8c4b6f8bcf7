"""What clients were promised and what they got, written down by many threads."""

import hashlib
import threading
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Ledger:
    """Counts, and what is looked at again when all is over."""

    counts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    """What clients saw of the faults, by kind of error."""
    problems: list[str] = field(default_factory=list)
    """What must never be."""
    acknowledged: dict[str, bytes] = field(default_factory=dict)
    """Input files that a client was told are there, and did not delete, by id."""
    batches: dict[str, set[str]] = field(default_factory=dict)
    """Batches that were created, by tenant."""
    downloaded: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    """Result files that were read and not deleted, by id: their tenant and their SHA-256."""
    committed: list[float] = field(default_factory=list)
    """When results were committed, seconds since 1970."""
    open: dict[str, str] = field(default_factory=dict)
    """Batches that some client waits for, and their status as it was seen last."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, name: str, by: int = 1) -> None:
        with self.lock:
            self.counts[name] += by

    def saw(self, error: str) -> None:
        with self.lock:
            self.errors[error] += 1

    def accuse(self, verdict: str, what: str, by: int = 1) -> None:
        """Note that something was `lost`, `doubled` or `wrong`."""
        with self.lock:
            self.counts[verdict] += by
            self.problems.append(f"{verdict}: {what}")

    def read(self, tenant: str, file_id: str, data: bytes) -> None:
        self.downloaded[file_id] = tenant, hashlib.sha256(data).digest()
