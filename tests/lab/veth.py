"""Two network namespaces joined by a veth pair: the kernel's own wire, without loss and as fast as it goes. Needs root.

::

    with VethPair() as pair:
        server = pair.second.start([...])
        with pair.first.entered():
            open_a_raw_socket(pair.first.interface)

For loss, delay and everything else that a wire may do see :mod:`tests.lab.netns`.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import subprocess
from collections.abc import Iterator
from typing import Self

from tests.lab.netns import Namespace, remove_left_over
from tests.support.peers import require_program, require_root

#: Apart from those of :mod:`tests.lab.netns`, which clears what either leaves behind.
_numbers = itertools.count(1000)
_libc = ctypes.CDLL(None, use_errno=True)


class VethNamespace(Namespace):
    """One of the two machines."""

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread inside the namespace: sockets made now belong to it, and stay in it."""
        outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        inside = os.open(f"/var/run/netns/{self.name}", os.O_RDONLY)
        try:
            _set_namespace(inside)
            try:
                yield
            finally:
                _set_namespace(outside)
        finally:
            os.close(inside)
            os.close(outside)


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class VethPair:
    """Two namespaces and the pair between them, as a context manager.

    :raises SkipTest: without root or ``ip`` (AssertionError when peers are required).
    """

    def __init__(self, mtu: int = 1500) -> None:
        number = next(_numbers)
        network = (os.getpid() * 11 + number) % 256
        base = f"mikalab-{os.getpid()}-{number}"
        self.first = VethNamespace(f"{base}-a", f"ve{os.getpid() % 100000}x{number}a", 1, network)
        self.second = VethNamespace(f"{base}-b", f"ve{os.getpid() % 100000}x{number}b", 2, network)
        self._mtu = mtu
        self._made: list[VethNamespace] = []

    def __enter__(self) -> Self:
        require_root()
        require_program("ip")
        remove_left_over()
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process that still runs inside, and remove both namespaces with their devices."""
        for space in self._made:
            pids = subprocess.run(["ip", "netns", "pids", space.name], text=True, capture_output=True).stdout
            for pid in pids.split():
                if int(pid) != os.getpid():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), 9)
            subprocess.run(["ip", "netns", "del", space.name], capture_output=True)
        self._made.clear()

    def _make(self) -> None:
        first, second = self.first, self.second
        for space in (first, second):
            _ip("netns", "add", space.name)
            self._made.append(space)
        self.connect()

    def connect(self) -> None:
        """Make the pair of devices, again if they were removed."""
        first, second = self.first, self.second
        _ip(
            *("link", "add", first.interface, "netns", first.name, "address", first.mac, "mtu", str(self._mtu)),
            *("type", "veth", "peer", "name", second.interface, "netns", second.name),
            *("address", second.mac, "mtu", str(self._mtu)),
        )
        for space in (first, second):
            inside = ("-n", space.name)
            _ip(*inside, "link", "set", "lo", "up")
            _ip(*inside, "addr", "add", f"{space.address}/24", "dev", space.interface)
            _ip(*inside, "addr", "add", f"{space.address6}/64", "dev", space.interface, "nodad")
            _ip(*inside, "link", "set", space.interface, "up")


def _ip(*args: str) -> None:
    result = subprocess.run(["ip", *args], text=True, capture_output=True)
    if result.returncode:
        raise RuntimeError(f"ip {' '.join(args)}: {result.stderr.strip()}")
