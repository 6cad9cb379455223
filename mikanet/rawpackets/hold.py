"""Holding a TCP port that the kernel must neither use nor answer for.

A listening socket whose filter accepts nothing takes every segment to its port and is silent: the kernel sends no RST,
gives the port to nobody else, and forgets it all when this process ends, however it ends. The firewall rules do the
same from outside, and reach what this cannot: connection tracking.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from mikanet.errors import ConfigError
from mikanet.rawpackets.bpf import nothing
from mikanet.rawpackets.device import attach_filter

#: Where a client's port is taken from, as paqet does.
FIRST_FREE, LAST_FREE = 32768, 65535
_TRIES = 100


class HeldPort:
    """A port of this machine, held on all its addresses.

    :ivar number: of the port.
    """

    def __init__(self, held: socket.socket) -> None:
        self._socket = held
        self.number = int(held.getsockname()[1])

    def release(self) -> None:
        """Give it back."""
        self._socket.close()


def hold_port(port: int, random_port: Callable[[int, int], int]) -> HeldPort | None:
    """Hold a port; 0 takes a free one of 32768..65535.

    :param random_port: gives a number between two, both included.
    :return: None without the right to take a port below 1024.
    :raises ConfigError: if another program has the port, or without the right to silence a socket.
    """
    for _ in range(_TRIES):
        number = port or random_port(FIRST_FREE, LAST_FREE)
        try:
            made = _silent_socket(number)
            return None if made is None else HeldPort(made)
        except OSError as problem:
            if problem.errno != errno.EADDRINUSE:
                raise ConfigError(f"cannot hold TCP port {port}: {problem.strerror}") from None
            if port:
                raise ConfigError(
                    f"TCP port {port} is in use, and its owner would answer for us: stop that program, or choose "
                    f"another port (ss -tlnp sport = :{port} shows it)"
                ) from None
    raise ConfigError("no TCP port is free")


def port_is_taken(port: int) -> bool:
    """Whether another program has a TCP port, as far as we may see; needs no rights and answers no packet."""
    with _tcp_socket() as probe:
        try:
            probe.bind(("", port))
        except OSError as problem:
            return problem.errno == errno.EADDRINUSE
    return False


def _silent_socket(port: int) -> socket.socket | None:
    """Listening; None if this port is not ours to take."""
    made = _tcp_socket()
    try:
        try:
            attach_filter(made, nothing())
        except PermissionError:  # newer kernels, for TCP
            raise ConfigError(f"holding TCP port {port} needs root or CAP_NET_ADMIN beside CAP_NET_RAW") from None
        try:
            made.bind(("", port))
        except PermissionError:
            made.close()
            return None
        made.listen(1)
    except BaseException:
        made.close()
        raise
    return made


def _tcp_socket() -> socket.socket:
    family = socket.AF_INET6 if _has_ipv6() else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return made


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True
