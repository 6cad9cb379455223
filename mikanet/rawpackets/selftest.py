"""Asking our own kernel what it does with a peer's packets: a segment to the port by way of loopback, and a look for RST.

The segment takes the way through the firewall and TCP that a peer's takes, but for the interface.
"""

from __future__ import annotations

import socket
import struct
import time
from ipaddress import IPv4Address, IPv6Address

from mikanet.wire import tcp

#: An answer comes while the segment is still being sent; this long is waited all the same (seconds).
PATIENCE = 0.1


def kernel_answers(address: IPv4Address | IPv6Address, port: int, from_port: int, patience: float = PATIENCE) -> bool:
    """Whether this machine's kernel answers a segment to ``port`` with RST. Needs the right to open raw sockets.

    :param address: one of this machine.
    :param from_port: a port that nobody uses.
    :raises OSError: if the segment cannot be sent, for one because the address is not of this machine.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.bind((str(address), 0))
        segment = tcp.encode(
            tcp.TcpSegment(from_port, port, 1, 1, tcp.DEFAULT_FLAGS, 65535, b"", b"mikanet"),
            address.packed,
            address.packed,
        )
        raw.sendto(segment, (str(address), 0))
        until = time.monotonic() + patience
        while (left := until - time.monotonic()) > 0:
            raw.settimeout(left)
            try:
                answer = raw.recv(2048)
            except TimeoutError:
                break
            if _is_reset(answer, address, port, from_port):
                return True
    return False


def _is_reset(packet: bytes, address: IPv4Address | IPv6Address, port: int, to_port: int) -> bool:
    """Whether a packet that a raw socket read is the RST."""
    try:
        # IPv4 raw sockets give the header as well. Checksums on loopback may be left undone: only the fields count.
        data = packet[(packet[0] & 15) * 4 :] if address.version == 4 else packet
        source_port, destination_port, _, _, offset, *_ = tcp.HEADER.unpack_from(data)
    except (IndexError, struct.error):
        return False
    return bool((source_port, destination_port) == (port, to_port) and offset & tcp.RST)
