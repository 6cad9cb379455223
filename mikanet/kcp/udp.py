"""UDP for KCP links: many packets per system call where the kernel can, with plain sockets everywhere else.

A flush sends runs of packets of one size to one peer. Linux takes such a run in one call (``UDP_SEGMENT``) and gives
one back in one read (``UDP_GRO``); what is on the wire is the same packets.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger
from zope.interface import implementer

from mikanet.datagrams import QuietPort
from mikanet.kcp.ports import IPacketPort

#: (host, port) or (host, port, flow, scope), as sockets give it.
UdpPeer = tuple[Any, ...]
PacketsReceived = Callable[[UdpPeer, list[bytes]], object]

#: Socket buffers, as kcptun's: whole windows must fit. The kernel may give less.
SOCKET_BUFFER = 4 << 20

# Linux, <linux/udp.h>; Python has no names for them.
_UDP_SEGMENT = 103
_UDP_GRO = 104
#: Most packets, and most bytes, that one call takes.
_MAX_RUN, _MAX_RUN_BYTES = 64, 65_000
_RUN_SIZE = struct.Struct("=H")
_GRO_SIZE = struct.Struct("=i")
_ANCILLARY = socket.CMSG_SPACE(_GRO_SIZE.size)
#: Bytes taken per turn of the reactor before others get theirs.
_READ_AT_ONCE = 512 * 1024
#: What a failed read counts as, so that a socket that only fails is left for a turn too.
_ERROR_COST = 16384
#: Errors that mean "not so": the kernel or the interface cannot cut runs.
_NO_RUNS = frozenset({errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.ENOPROTOOPT, errno.EOPNOTSUPP})


_log = Logger()


class _Nobody(DatagramProtocol):
    """The protocol that Twisted's port asks for; packets go elsewhere."""

    noisy = False


@implementer(IPacketPort)
class UdpPackets(QuietPort):
    """A UDP socket that carries sealed packets of many peers, or of one.

    :param received: called with each peer's packets of one read.
    The socket is never connected: an ICMP error would make the reactor take a connected one for closed, and a server
    that is away for a moment is none of a session's ends.

    :param only: take packets of this peer only.
    :ivar sends: and :ivar reads: system calls made.
    """

    def __init__(
        self, reactor: Any, port: int, interface: str, received: PacketsReceived, only: UdpPeer | None = None
    ) -> None:
        super().__init__(port, _Nobody(), interface, reactor=reactor)  # type: ignore[no-untyped-call]
        self._received = received
        self._only = None if only is None else _as_received(only)
        self._runs = True
        self.sends = 0
        self.reads = 0

    def createInternetSocket(self) -> socket.socket:
        """As Port, with large buffers and batched reads."""
        made: socket.socket = super().createInternetSocket()
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            made.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
        try:
            made.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
        except OSError:
            pass  # one packet per read then
        return made

    def _deliver(self, peer: UdpPeer | None, batch: list[bytes]) -> None:
        """Pass packets on. A fault on the way is one session's; the port is everybody's and goes on."""
        try:
            self._received(peer, batch)  # type: ignore[arg-type]  # there is a peer with a batch
        except Exception:  # noqa: BLE001  # whatever it is
            _log.failure("a packet could not be handled")

    def doRead(self) -> None:
        """Read what is there, in batches per peer."""
        receive = self.socket.recvmsg
        budget = _READ_AT_ONCE
        batch: list[bytes] = []
        current: UdpPeer | None = None
        while budget > 0 and self.connected:
            try:
                data, ancillary, _, peer = receive(65535, _ANCILLARY)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                budget -= _ERROR_COST  # what ICMP said of an earlier packet; KCP finds out by itself
                continue
            self.reads += 1
            budget -= len(data) or 1
            if self._only is not None and peer[:2] != self._only:
                continue
            if peer != current:
                if batch:
                    self._deliver(current, batch)
                    batch = []
                current = peer
            size = _GRO_SIZE.unpack_from(ancillary[0][2])[0] if ancillary else len(data)
            if size >= len(data):
                batch.append(data)
            else:
                batch += [data[at : at + size] for at in range(0, len(data), size)]
        if batch:
            self._deliver(current, batch)

    def send_packets(self, peer: UdpPeer, packets: Sequence[bytes]) -> None:
        """As :class:`IPacketPort`. What a full socket does not take is lost."""
        if not self.connected:
            return
        try:
            if len(packets) == 1 or not self._runs:
                for packet in packets:
                    self._send(packet, peer)
            else:
                self._send_runs(peer, packets)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as problem:
            if problem.errno not in _NO_RUNS or not self._runs:
                return  # unreachable, refused: KCP repeats, and gives up in time
            self._runs = False
            self.send_packets(peer, packets)

    def _send(self, packet: bytes, peer: UdpPeer) -> None:
        self.sends += 1
        self.socket.sendto(packet, peer)

    def _send_runs(self, peer: UdpPeer, packets: Sequence[bytes]) -> None:
        """Runs of one size, the last of which may be shorter."""
        at, count = 0, len(packets)
        while at < count:
            size = len(packets[at])
            end = at + 1
            most = min(count, at + min(_MAX_RUN, _MAX_RUN_BYTES // (size or 1)))
            while end < most and len(packets[end]) == size:
                end += 1
            if end < most and len(packets[end]) < size:
                end += 1
            if end - at == 1:
                self._send(packets[at], peer)
            else:
                self.sends += 1
                control = [(socket.IPPROTO_UDP, _UDP_SEGMENT, _RUN_SIZE.pack(size))]
                self.socket.sendmsg(packets[at:end], control, 0, peer)
            at = end

    def address_of(self, peer: UdpPeer) -> IAddress:
        """As :class:`IPacketPort`."""
        return (IPv6Address if ":" in peer[0] else IPv4Address)("UDP", peer[0], peer[1])

    def host_address(self) -> IAddress:
        """As :class:`IPacketPort`."""
        return self.getHost()  # type: ignore[no-any-return, no-untyped-call]

    @staticmethod
    def source_of(peer: UdpPeer) -> int:
        """The IPv4 address, or the /64 of an IPv6 one (X3)."""
        address = ipaddress.ip_address(peer[0].split("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped  # a socket for both families
        return int(address) if address.version == 4 else int(address) >> 64 | 1 << 64


def _as_received(peer: UdpPeer) -> UdpPeer:
    """An address as the kernel writes it: IPv6 has many ways."""
    (found, *_) = socket.getaddrinfo(peer[0], peer[1], type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
    return found[4][:2]
