"""Hosts of a test: network namespaces on one machine, each with a name and an address of its own.

All of them, the one that we are in included, are without a name in the file system and end with their processes: there
is nothing to clean up, and no packet leaves the machine.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

# Reserved for measurements of networks (RFC 2544), so that nobody's machines have them.
NETWORK = "198.18.0"
OURS = f"{NETWORK}.1"
_FLAG = "BENCH_HAS_HOSTS"
_OWN = ("unshare", "--net", "--uts")


def enter() -> str | None:
    """Begin this program again in a namespace of its own; return there, or with the reason why that cannot be."""
    if os.environ.pop(_FLAG, None):
        _make_network()
        return None
    try:
        subprocess.run([*_OWN, "ip", "link", "add", "probe", "type", "veth"], check=True, capture_output=True)
    except FileNotFoundError as error:
        return f"`{error.filename}` is not installed"
    except subprocess.CalledProcessError as error:
        return f"no rights to make network namespaces ({error.stderr.decode().strip()}); root has them"
    return os.execvpe(_OWN[0], [*_OWN, sys.executable, *sys.argv], os.environ | {_FLAG: "1"})


def _make_network() -> None:
    _ip("link", "set", "lo", "up")
    _ip("link", "add", "hosts", "type", "bridge")
    _ip("address", "add", f"{OURS}/24", "dev", "hosts")
    _ip("link", "set", "hosts", "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@dataclass(frozen=True)
class Host:
    """One more machine on the network of `enter`."""

    command: Sequence[str]
    """Before a command, runs it there, in one process."""


@contextmanager
def host(number: int) -> Iterator[Host]:
    # `cat` holds the namespaces open, until we end, however that comes about. It has them once it speaks.
    holding = [*_OWN, "sh", "-c", "echo; exec cat"]
    with subprocess.Popen(holding, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        _ip("link", "add", f"host{number}", "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
        _ip("link", "set", f"host{number}", "master", "hosts", "up")
        made = Host([shutil.which("nsenter") or "nsenter", f"--target={holder.pid}", "--net", "--uts"])
        address = f"{NETWORK}.{10 + number}/24"
        own = f"hostname host{number}; ip link set lo up; ip address add {address} dev eth0; ip link set eth0 up"
        subprocess.run([*made.command, "sh", "-ec", own], check=True)
        yield made
