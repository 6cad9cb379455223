"""Takes rights and resources away from this process, then becomes the worker.

``python -I -S launch.py UID,MEMORY,FILES,PROCESSES PROGRAM ARGUMENT ...``; -1 (0 for memory) leaves a thing as it is.
"""

import os
import pwd
import resource
import sys

#: The group that owns nothing, for users without an entry: another group's number may be theirs, root's shadow for one.
NOGROUP = 65534


def primary_group(uid: int) -> int:
    """The group of a user."""
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return NOGROUP


def main() -> None:
    """See the module's text."""
    uid, memory, files, processes = (int(each) for each in sys.argv[1].split(","))
    program = sys.argv[2:]
    # A session of its own: what the worker starts dies with it, and signals meant for the server do not reach it.
    os.setsid()
    os.umask(0o077)
    if uid >= 0 and (uid != os.geteuid() or os.geteuid() == 0):
        os.setgroups([])
        os.setgid(primary_group(uid))
        os.setuid(uid)
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
