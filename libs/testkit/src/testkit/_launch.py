"""Becomes another program that dies with whoever started it.

Run by path (`python -I -S _launch.py …`), never imported: it is the few lines between fork and exec that would be
unsafe to run in a forked copy of a process with gRPC threads. It must not import anything but the standard library.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Drop privileges, bind this process's life to its parent's, and exec the program.

    Arguments: parent pid, signal sent when the parent dies, uid or -1, gid or -1, then the command.
    """
    parent, death_signal, uid, gid = (int(text) for text in sys.argv[1:5])
    command = sys.argv[5:]
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    # After the change of user, which would clear it; before the look at the parent, which may have died already.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606  # No shell is wanted: the arguments come from testkit itself.


if __name__ == "__main__":
    main()
