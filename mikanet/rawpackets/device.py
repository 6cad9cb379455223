"""AF_PACKET: whole frames of one interface from and to the kernel.

The filter is attached before the socket is bound, so no other packet is ever queued.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Protocol

from mikanet.errors import ConfigError
from mikanet.rawpackets.bpf import Instruction, assemble
from mikanet.rawpackets.frames import FrameMaker, FramePath, Run, open_runs

_send_frames: Callable[..., int] | None
_receive_frames: Callable[[int, int], tuple[list[Run], list[bytes]]] | None
try:
    from mikanet._speedups import receive_frames as _receive_frames
    from mikanet._speedups import send_frames as _send_frames
except ImportError:  # an install without a compiler
    _send_frames = _receive_frames = None

# Linux, <linux/if_packet.h>, <linux/if_ether.h>, <linux/if_arp.h>, <asm/socket.h>, <linux/sockios.h>.
_ETH_P_ALL = 3
SOL_PACKET = 263
_PACKET_STATISTICS = 6
_PACKET_IGNORE_OUTGOING = 23
_SO_ATTACH_FILTER = 26
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_SIOCGIFMTU, _SIOCGIFFLAGS, _SIOCGIFHWADDR = 0x8921, 0x8913, 0x8927
_IFF_UP = 1
_IFREQ = struct.Struct("=16si20x")
_STATISTICS = struct.Struct("=II")
#: Most that a frame may be; longer ones are cut and fail their checks.
_MAX_FRAME = 2048
#: Frames read before others get their turn.
READ_AT_ONCE = 256

#: The interface is away for now, or for good.
AWAY = frozenset({errno.ENETDOWN, errno.ENXIO, errno.ENODEV})


class FrameDevice(Protocol):
    """What a backend does.

    :ivar index: of the interface; :ivar mac: its station; :ivar mtu: its largest IP packet.
    """

    index: int
    mac: bytes
    mtu: int

    def fileno(self) -> int:
        """A descriptor that is readable when frames wait."""

    def receive_runs(self) -> tuple[list[Run], list[bytes]]:
        """What waits, at most :data:`READ_AT_ONCE` frames: runs of payloads, and frames that have none for us.

        :raises OSError: if the interface is away.
        """

    def send_packets(self, maker: FrameMaker, path: FramePath, payloads: list[bytes]) -> int:
        """Make and send frames until the kernel takes no more; how many it took, 0 if it is full.

        :raises OSError: if the first frame cannot be sent: the interface is away (:data:`AWAY`), or it is too long.
        """

    def dropped(self) -> int:
        """Packets that the kernel dropped since the last call, for want of room."""

    def pending_error(self) -> int:
        """The error number that the descriptor holds, which is cleared."""

    def bind(self, interface: str) -> None:
        """Listen on an interface, or on another one from now on, for which no privileges are needed.

        :raises ConfigError: in one line, if there is no such interface, or it cannot be used.
        """

    def close(self) -> None:
        """Let go of the interface."""


def interface_mtu(interface: str) -> int:
    """Largest IP packet of an interface.

    :raises OSError: if there is no such interface.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        answer = fcntl.ioctl(any_socket, _SIOCGIFMTU, _IFREQ.pack(interface.encode(), 0))
    return int(_IFREQ.unpack(answer)[1])


def interface_mac(interface: str) -> bytes:
    """The station of an interface.

    :raises OSError: if there is no such interface.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        answer = fcntl.ioctl(any_socket, _SIOCGIFHWADDR, _IFREQ.pack(interface.encode(), 0))
    return answer[18:24]


def interface_state(interface: str) -> tuple[int, bool]:
    """Index of an interface, and whether it is up.

    :raises OSError: if there is no such interface.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _IFREQ.pack(interface.encode(), 0))
    return socket.if_nametoindex(interface), bool(_IFREQ.unpack(answer)[1] & _IFF_UP)


def attach_filter(to: socket.socket, program: Sequence[Instruction]) -> None:
    """Let only packets that ``program`` accepts reach a socket."""
    code = ctypes.create_string_buffer(assemble(program), 8 * len(program))
    to.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code)))


class PacketSocket:
    """The AF_PACKET backend.

    :raises ConfigError: in one line, if the socket cannot be opened or the interface is not one of Ethernet.
    """

    #: Whether what this machine sends is seen as well.
    sees_outgoing = False

    def __init__(self, interface: str, program: Sequence[Instruction], sockbuf: int) -> None:
        try:
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        except PermissionError:
            raise ConfigError(
                "raw sockets need root, or the capabilities CAP_NET_RAW and CAP_NET_ADMIN (AmbientCapabilities= in a "
                "systemd unit)"
            ) from None
        except OSError as problem:
            raise ConfigError(
                f"cannot open a raw socket: {problem.strerror or problem}; a systemd unit must have AF_PACKET in "
                "RestrictAddressFamilies="
            ) from None
        try:
            self._open(interface, program, sockbuf)
        except BaseException:
            self.socket.close()
            raise

    def _open(self, interface: str, program: Sequence[Instruction], sockbuf: int) -> None:
        made = self.socket
        attach_filter(made, program)
        for forced, asked in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            try:
                made.setsockopt(socket.SOL_SOCKET, forced, sockbuf)
            except PermissionError:
                made.setsockopt(socket.SOL_SOCKET, asked, sockbuf)
        if not self.sees_outgoing:
            self._ignore_outgoing()
        self.bind(interface)

    def bind(self, interface: str) -> None:
        """As :class:`FrameDevice`."""
        made = self.socket
        try:
            made.bind((interface, _ETH_P_ALL))
            self.mtu = interface_mtu(interface)
            self.index = socket.if_nametoindex(interface)
        except OSError as problem:
            raise ConfigError(
                f"cannot open interface {interface}: {problem.strerror or problem}; ip link lists the interfaces"
            ) from None
        _, _, _, kind, self.mac = made.getsockname()
        if kind not in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK):
            raise ConfigError(f"interface {interface} is not Ethernet: name one that is, or set carrier: udp")
        if kind == _ARPHRD_LOOPBACK:
            self._ignore_outgoing()  # everything that goes out there comes in as well

    def _ignore_outgoing(self) -> None:
        try:
            self.socket.setsockopt(SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        except OSError:
            pass  # before Linux 4.20; a port's filter asks for packets to this machine

    def fileno(self) -> int:
        """As :class:`FrameDevice`."""
        return self.socket.fileno()

    def receive_runs(self) -> tuple[list[Run], list[bytes]]:
        """As :class:`FrameDevice`."""
        if _receive_frames is not None:
            return _receive_frames(self.socket.fileno(), READ_AT_ONCE)
        return open_runs(self.receive())

    def send_packets(self, maker: FrameMaker, path: FramePath, payloads: list[bytes]) -> int:
        """As :class:`FrameDevice`."""
        cycle = path.cycle
        if _send_frames is None or cycle.has_syn:
            return self.send(maker.make(path, payloads))
        sent = _send_frames(
            self.socket.fileno(), path.template, path.sum, maker.epoch, maker.sent, cycle.packed, cycle.at, payloads
        )
        maker.count(cycle, sent)
        return sent

    def receive(self) -> list[bytes]:
        """Whole frames that wait, at most :data:`READ_AT_ONCE`.

        :raises OSError: if the interface is away.
        """
        receive = self.socket.recv
        frames: list[bytes] = []
        try:
            for _ in range(READ_AT_ONCE):
                frames.append(receive(_MAX_FRAME))
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            if not frames:
                raise
        return frames

    def send(self, frames: Sequence[bytes]) -> int:
        """Send whole frames; as :meth:`send_packets`."""
        send = self.socket.send
        sent = 0
        try:
            for frame in frames:
                send(frame)
                sent += 1
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as problem:
            if not sent and problem.errno != errno.ENOBUFS:  # a full queue of the device
                raise
        return sent

    def dropped(self) -> int:
        """As :class:`FrameDevice`."""
        answer = self.socket.getsockopt(SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
        return int(_STATISTICS.unpack(answer)[1])

    def pending_error(self) -> int:
        """As :class:`FrameDevice`."""
        return self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def close(self) -> None:
        """As :class:`FrameDevice`."""
        self.socket.close()
