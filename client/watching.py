"""Looks at batches until they have ended, and shows how far they are."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx2
from openai import APIConnectionError, InternalServerError, OpenAI
from openai.types import Batch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from client import results
from client.show import note
from jobs.states import TERMINAL

POLL_SECONDS = 1.0
# Without a terminal: a line when the state changes, and this often while rows end.
LINE_SECONDS = 10.0
# Failures are counted from the error file, which may be long: not again before this, or so many times what it took.
CODES_SECONDS, CODES_PAUSES = 10.0, 20
# A server that is away for longer is not coming back by itself; after this it is said that it is away.
PATIENCE_SECONDS, SILENCE_SECONDS = 600.0, 5.0


@dataclass(frozen=True)
class Sight:
    """What there is to see of all batches together at one moment."""

    status: str
    total: int
    completed: int
    failed: int
    output_tokens: int

    @property
    def done(self) -> int:
        return self.completed + self.failed

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> "Sight":
        counts = [batch.request_counts for batch in batches if batch.request_counts]
        states = Counter(batch.status for batch in batches)
        return cls(
            status=", ".join(state if len(batches) == 1 else f"{count} {state}" for state, count in states.items()),
            total=sum(count.total for count in counts),
            completed=sum(count.completed for count in counts),
            failed=sum(count.failed for count in counts),
            output_tokens=sum(batch.usage.output_tokens for batch in batches if batch.usage),
        )


@dataclass
class Pace:
    """Rows and tokens a second, from the last look before the first row that ended while we looked."""

    since: float | None = None
    first: Sight | None = None

    def words(self, now: float, sight: Sight) -> str:
        """Return rates and the time that is left; nothing before any row has ended."""
        if self.first is None or self.since is None or sight.done == self.first.done:
            self.since, self.first = now, sight
            return ""
        seconds = max(now - self.since, 1e-3)
        rows = (sight.done - self.first.done) / seconds
        tokens = (sight.output_tokens - self.first.output_tokens) / seconds
        return f"{rows:.1f} rows/s, {tokens:.0f} tokens/s, {_duration((sight.total - sight.done) / rows)} left"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


@dataclass
class Watcher:
    """Reads batches again and again; `show` gets each sight, in words too."""

    sdk: OpenAI
    batches: list[Batch]
    show: Callable[[Sight, str], None]
    clock: Callable[[], float] = time.monotonic
    pace: Pace = field(default_factory=Pace)
    codes: Counter[str] = field(default_factory=Counter)
    _codes_due: float = float("-inf")
    _final: dict[str, Counter[str]] = field(default_factory=dict)
    """The codes of batches that have ended, which are read once."""
    _answered_at: float = 0.0
    _is_away: bool = False
    """It was said that nobody answers."""

    def run(self) -> list[Batch]:
        """Return the batches when all have ended.

        Raises:
            APIConnectionError: nobody has answered for ten minutes.
        """
        self._answered_at = self.clock()
        while True:
            self._look()
            if all(batch.status in TERMINAL for batch in self.batches):
                return self.batches
            time.sleep(POLL_SECONDS)

    def _look(self) -> None:
        try:
            self.batches = [
                batch if batch.status in TERMINAL else self.sdk.batches.retrieve(batch.id) for batch in self.batches
            ]
            self._count_codes()
        except (APIConnectionError, InternalServerError, httpx2.TransportError):
            if self.clock() - self._answered_at > PATIENCE_SECONDS:
                raise
            self._say_away()
            return
        self._answered_at, self._is_away = self.clock(), False
        sight = Sight.of(self.batches)
        self.show(sight, ", ".join(filter(None, (self.pace.words(self.clock(), sight), self._failures(sight)))))

    def _say_away(self) -> None:
        if not self._is_away and self.clock() - self._answered_at > SILENCE_SECONDS:
            note(f"{self.sdk.base_url} does not answer. It is asked again for {PATIENCE_SECONDS / 60:.0f} minutes.")
            self._is_away = True

    def _count_codes(self) -> None:
        ended = all(batch.status in TERMINAL for batch in self.batches)
        if ended or self.clock() >= self._codes_due:
            began = self.clock()
            self.codes = sum(map(self._codes_of, self.batches), Counter[str]())
            self._codes_due = self.clock() + max(CODES_SECONDS, CODES_PAUSES * (self.clock() - began))

    def _codes_of(self, batch: Batch) -> Counter[str]:
        if batch.id in self._final:
            return self._final[batch.id]
        codes = results.failure_codes(self.sdk, batch)
        if batch.status in TERMINAL:
            self._final[batch.id] = codes
        return codes

    def _failures(self, sight: Sight) -> str:
        if not sight.failed:
            return ""
        by_code = ", ".join(f"{count} {code}" for code, count in self.codes.most_common())
        return f"{sight.failed} failed" + (f" ({by_code})" if by_code else "")


def watch(sdk: OpenAI, batches: list[Batch], console: Console) -> tuple[list[Batch], Counter[str]]:
    """Show progress until the batches have ended; return them and their failed requests by code.

    On a terminal that is a bar, elsewhere a line now and then.

    Raises:
        APIConnectionError: nobody has answered for ten minutes.
    """
    with _bar(console) if console.is_terminal else _lines(console) as show:
        watcher = Watcher(sdk, batches, show)
        ended = watcher.run()
    return ended, watcher.codes


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[Sight, str], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} rows {task.fields[words]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=None, words="")

        def show(sight: Sight, words: str) -> None:
            progress.update(task, description=sight.status, total=sight.total, completed=sight.done, words=words)

        yield show


@contextmanager
def _lines(console: Console) -> Iterator[Callable[[Sight, str], None]]:
    said: tuple[str, float, int] | None = None

    def show(sight: Sight, words: str) -> None:
        nonlocal said
        now = time.monotonic()
        if said is None or sight.status != said[0] or (now - said[1] >= LINE_SECONDS and sight.done != said[2]):
            said = (sight.status, now, sight.done)
            text = ", ".join(filter(None, (f"{sight.status}: {sight.done}/{sight.total} rows", words)))
            console.print(text, markup=False, highlight=False, soft_wrap=True)

    yield show
