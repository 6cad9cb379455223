"""libpcap through pcap-ct: the backend for where AF_PACKET is not wanted (the extra ``mikanet[pcap]``).

It does the same several times slower: every frame passes through ctypes.
"""

from __future__ import annotations

import errno
import os
import socket

from mikanet.errors import ConfigError
from mikanet.rawpackets.device import READ_AT_ONCE, interface_mac, interface_mtu
from mikanet.rawpackets.frames import FrameMaker, FramePath, Run, open_runs
from mikanet.wire.ethernet import format_mac

_SNAPLEN = 65536
_DLT_ETHERNET = 1
_INBOUND = 1  # PCAP_D_IN


class PcapDevice:
    """The libpcap backend, see :class:`mikanet.rawpackets.device.FrameDevice`.

    :raises ConfigError: in one line, if the library is missing or the interface cannot be opened.
    """

    def __init__(self, interface: str, port: int, buffer_size: int) -> None:
        try:
            from pcap import pcap
        except (ImportError, OSError):
            raise ConfigError(
                "the pcap backend needs pcap-ct and libpcap: pip install 'mikanet[pcap]' and apt install libpcap0.8"
            ) from None
        try:
            self.index = socket.if_nametoindex(interface)
            self.mac, self.mtu = interface_mac(interface), interface_mtu(interface)
            self._pcap = pcap(interface, _SNAPLEN, False, 1, immediate=True, buffer_size=buffer_size)
            self._pcap.setnonblock()
            self._pcap.setdirection(_INBOUND)
            self._pcap.setfilter(f"tcp and dst port {port} and ether dst {format_mac(self.mac)}")
        except OSError as problem:
            raise ConfigError(f"cannot open interface {interface} with libpcap: {problem}") from None
        if self._pcap.datalink() != _DLT_ETHERNET:
            raise ConfigError(f"interface {interface} is not Ethernet: name one that is, or set carrier: udp")
        self._total_dropped = 0

    def fileno(self) -> int:
        """As FrameDevice."""
        return int(self._pcap.fileno())

    def receive_runs(self) -> tuple[list[Run], list[bytes]]:
        """As FrameDevice."""
        frames: list[bytes] = []
        if self._pcap.dispatch(READ_AT_ONCE, lambda _, frame: frames.append(bytes(frame))) < 0 and not frames:
            raise OSError(errno.ENETDOWN, self._pcap.geterr())
        return open_runs(frames)

    def send_packets(self, maker: FrameMaker, path: FramePath, payloads: list[bytes]) -> int:
        """As FrameDevice."""
        frames = maker.make(path, payloads)
        for sent, frame in enumerate(frames):
            try:
                self._pcap.sendpacket(frame)
            except OSError as problem:
                code = _code_of(str(problem))
                if sent or code in (errno.EAGAIN, errno.ENOBUFS):
                    return sent
                raise OSError(code, str(problem)) from None
        return len(frames)

    def dropped(self) -> int:
        """As FrameDevice."""
        before, self._total_dropped = self._total_dropped, int(self._pcap.stats()[1])
        return self._total_dropped - before

    def pending_error(self) -> int:
        """As FrameDevice."""
        with socket.socket(fileno=os.dup(self.fileno())) as same:
            return same.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def bind(self, interface: str) -> None:
        """As FrameDevice; libpcap has no way to do that."""
        raise ConfigError(f"interface {interface} cannot be opened any more without privileges: start again as root")

    def close(self) -> None:
        """As FrameDevice."""
        self._pcap.close()


def _code_of(text: str) -> int:
    """The error number in a message of libpcap, which has only the text."""
    codes = (errno.EAGAIN, errno.ENOBUFS, errno.ENETDOWN, errno.ENXIO, errno.ENODEV, errno.EMSGSIZE)
    return next((code for code in codes if os.strerror(code) in text), errno.EIO)
