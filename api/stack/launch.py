"""Starts a program that dies with its parent: `python -I -S launch.py SIGNAL PARENT_PID UID PROGRAM [ARGUMENT ...]`.

After a `kill -9` of the supervisor the kernel sends SIGNAL to the program, so nothing is left behind. Run as a script,
without the project's imports, so that it costs next to nothing.

With UID other than -1 it first becomes that user: Postgres refuses to run as root. That user may not be able to read
below root's home, where the program and its data may be; so it keeps the one capability to do so, where root has it.
"""

import ctypes
import os
import struct
import sys

# linux/prctl.h, linux/securebits.h, linux/capability.h
PR_SET_PDEATHSIG, PR_SET_SECUREBITS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 1, 28, 47, 2
# Without it access(2) ignores the capability, and Postgres asks that of its own files.
SECBIT_NO_SETUID_FIXUP = 1 << 2
CAP_DAC_OVERRIDE = 1
CAPABILITY_VERSION_3 = 0x20080522
# sysexits.h EX_UNAVAILABLE: the parent died before the kernel could be told.
EXIT_NO_PARENT = 69


def _become(libc: ctypes.CDLL, uid: int) -> None:
    libc.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    one = 1 << CAP_DAC_OVERRIDE
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    # effective, permitted, inheritable; then the upper 32 capabilities, none.
    if libc.capset(header, struct.pack("=6I", one, one, one, 0, 0, 0)) == 0:
        libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0)


def main() -> None:
    """Become the program."""
    number, parent, uid = map(int, sys.argv[1:4])
    libc = ctypes.CDLL(None)
    if uid >= 0:
        _become(libc, uid)
    # After the change of user, which clears it.
    libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(EXIT_NO_PARENT)
    os.execv(sys.argv[4], sys.argv[4:])  # noqa: S606  the program is named by the supervisor


if __name__ == "__main__":
    main()
