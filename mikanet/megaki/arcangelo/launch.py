"""Takes rights and resources away from this process, then becomes the worker.

``python -I -S launch.py UID,MEMORY,FILES,PROCESSES,SERVER PROGRAM ARGUMENT ...``; -1 (0 for memory) leaves a thing as it
is. SERVER is the process that the worker is to die with.
"""

import ctypes
import os
import pwd
import resource
import signal
import sys

#: The group that owns nothing, for users without an entry: another group's number may be theirs, root's shadow for one.
NOGROUP = 65534

#: From linux/prctl.h.
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38


def primary_group(uid: int) -> int:
    """The group of a user."""
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return NOGROUP


def bind_to_server(server: int) -> None:
    """Die with the server, however it ends, and get no rights from any program that is started from here."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for option, value in ((PR_SET_PDEATHSIG, int(signal.SIGKILL)), (PR_SET_NO_NEW_PRIVS, 1)):
        if prctl(option, ctypes.c_ulong(value), 0, 0, 0):
            raise OSError(ctypes.get_errno(), f"prctl {option}")
    if os.getppid() != server:
        raise SystemExit(1)  # it ended before we asked to be told


def main() -> None:
    """See the module's text."""
    uid, memory, files, processes, server = (int(each) for each in sys.argv[1].split(","))
    program = sys.argv[2:]
    # A session of its own: what the worker starts dies with it, and signals meant for the server do not reach it.
    os.setsid()
    os.umask(0o077)
    if uid >= 0 and (uid != os.geteuid() or os.geteuid() == 0):
        os.setgroups([])
        os.setgid(primary_group(uid))
        os.setuid(uid)
    bind_to_server(server)  # a change of user takes the signal back
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if memory > 0:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    if processes >= 0:
        # After the change of user: a user over the limit at that moment could start nothing, not even this program.
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
