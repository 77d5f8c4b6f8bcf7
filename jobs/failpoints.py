"""Places where a test kills, stops or fails a process: around all that makes something durable or sends it away.

    PROMPTMILL_TEST_FAILPOINT=create_batch.after_commit:kill9        the first time that it comes by there
    PROMPTMILL_TEST_FAILPOINT=write_block.before_commit:raise:3      the third time

The idea is FoundationDB's (BUGGIFY). The variable is read once, when the process starts: no call can switch one on. A
name is written once, as a literal, so that tests find all of them in the source (tests/failpoint_scan.py).
"""

import itertools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from jobs.errors import OutcomeUnknown

# On stderr, also in a command that has no logs: its stdout is what it answers.
log = logging.getLogger(__name__)

VARIABLE = "PROMPTMILL_TEST_FAILPOINT"


@dataclass(frozen=True)
class Armed:
    """The one failpoint of this process that does something, at the `nth` time from 1, and then no more."""

    name: str
    act: Callable[[], None]
    nth: int = 1
    _times: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def reach(self) -> None:
        # `next` on a count is one step for Python's threads.
        if next(self._times) == self.nth:
            log.warning("failpoint_reached %s", self.name)
            self.act()


def failpoint(name: str) -> None:
    """Do what the environment asks for at this place; otherwise nothing.

    Raises:
        OutcomeUnknown: it is asked to fail here.
    """
    if armed is not None and armed.name == name:
        armed.reach()


def parse(value: str) -> Armed:
    """Return what `name:action` or `name:action:nth` says.

    Raises:
        ValueError: it has another form.
        KeyError: there is no such action.
    """
    name, action, *nth = value.split(":", 2)
    return Armed(name, _ACTIONS[action], int(nth[0]) if nth else 1)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fail() -> None:
    # As a commit fails whose answer is lost: nobody can tell what became of it.
    message = "A failpoint."
    raise OutcomeUnknown(message)


def _block() -> None:
    threading.Event().wait()


_ACTIONS: dict[str, Callable[[], None]] = {"kill9": _kill, "raise": _fail, "block": _block}
armed = parse(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None
