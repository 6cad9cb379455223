"""``mikanet dump``: what a paqet link carries, captured here or read from a file, opened with the link's key.

Nothing of what users send is shown: the table ends at messages and sizes.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext, suppress
from typing import Any, ClassVar, TextIO

from twisted.python import usage

from mikanet.cli.dissect import Dissected, Dissector
from mikanet.cli.words import WordsOptions as BaseOptions
from mikanet.crypto.packets import packet_cipher
from mikanet.errors import ConfigError, RemoteProtocolError
from mikanet.paqet.options import PaqetSetup, client_raw_settings, load_setup, server_raw_settings
from mikanet.rawpackets.bpf import of_port
from mikanet.rawpackets.capture import CaptureSocket
from mikanet.wire.captures import ETHERNET, IP_AT, Captured, file_header, packet_block, read_captures

_BUFFER = 16 << 20
_PROTOCOLS = {"raw": 6, "udp": 17}


class Options(BaseOptions):
    """Options of ``mikanet dump``."""

    command = "mikanet dump"
    synopsis = "[options] CONFIG"
    longdesc = "Shows the packets of a paqet link: KCP segments, smux frames and messages, opened with CONFIG's key."

    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["read", None, None, "read this pcap or pcapng file instead of capturing"],
        ["write", None, None, "also write the packets to this pcapng file"],
        ["interface", None, None, "capture on this interface instead of CONFIG's"],
        ["count", None, "0", "end after so many packets; 0 goes on"],
        ["seconds", None, "0", "end after so many seconds; 0 goes on"],
    ]

    setup: PaqetSetup
    count: int
    seconds: float
    path = ""

    def parseArgs(self, *words: str) -> None:
        """One file.

        :raises UsageError: for none or more.
        """
        if len(words) != 1:
            raise usage.UsageError("give one file: the YAML file of either end")
        (self.path,) = words

    def check(self) -> None:
        """See :meth:`Options.check`."""
        self.setup = load_setup(self.path, bool(self["insecure-ok"]))
        self.count = self.number("count", 0, 10**12)
        self.seconds = self.number("seconds", 0, 10**9, float)


def run(options: Options) -> int:
    """Show packets until the end of the file, of the count or of the time, or Ctrl-C."""
    setup = options.setup
    table = Table(sys.stdout)
    dissector = make_dissector(setup)
    with ExitStack() as stack:
        write = stack.enter_context(open(options["write"], "wb")).write if options["write"] else None
        if write is not None:
            write(file_header())
        try:
            packets = _packets(options, stack)
            shown = 0
            for packet in packets:
                if _show(packet, dissector, table, write):
                    shown += 1
                    if shown == options.count:
                        break
        except KeyboardInterrupt:
            pass
        except RemoteProtocolError as problem:
            raise SystemExit(f"mikanet dump: {options['read']}: {problem}") from None
        except (ConfigError, OSError) as problem:
            raise SystemExit(f"mikanet dump: {problem}") from None
    return 0


def _packets(options: Options, stack: ExitStack) -> Iterator[Captured]:
    if options["read"]:
        return read_captures(stack.enter_context(open(options["read"], "rb")).read)
    setup = options.setup
    return capture(options["interface"] or link_interface(setup), setup, options.seconds)


def _show(packet: Captured, dissector: Dissector, table: Table, write: Callable[[bytes], Any] | None) -> bool:
    """Whether the packet is one of the link."""
    at = IP_AT.get(packet.link_type)
    if at is None:
        raise RemoteProtocolError(f"link type {packet.link_type} is not known")
    found = dissector.packet(packet.data[at:])
    if found is None:
        return False
    table.show(packet.time, found)
    if write is not None and packet.link_type == ETHERNET:
        write(packet_block(packet, "\n".join(f"{line.layer}: {line.text}" for line in found.lines)))
    return True


def link_port(setup: PaqetSetup) -> int:
    """The server's port of a link, whichever end the file is of."""
    server = setup.config.server
    return setup.config.port if server is None else server.port


def make_dissector(setup: PaqetSetup) -> Dissector:
    """A dissector for the link of a file."""
    cipher = packet_cipher(setup.config.kcp.block, setup.link.key, os.urandom)
    return Dissector(cipher, link_port(setup), _PROTOCOLS[setup.config.carrier])


def link_interface(setup: PaqetSetup) -> str:
    """The interface that the packets of a link pass.

    :raises ConfigError: if it is neither given nor found.
    """
    config = setup.config
    if config.network.interface:
        return config.network.interface
    if config.is_server:
        return server_raw_settings(config, firewall=False).interface
    return client_raw_settings(config, firewall=False)[0].interface


def capture(interface: str, setup: PaqetSetup, seconds: float) -> Iterator[Captured]:
    """The packets of a link as they pass an interface, in both directions.

    :param seconds: to end after; 0 goes on.
    :raises ConfigError: in one line, without the right to capture.
    """
    return (packet for _, packet in capture_all([interface], setup, seconds))


def capture_all(interfaces: Sequence[str], setup: PaqetSetup, seconds: float) -> Iterator[tuple[str, Captured]]:
    """The same of several interfaces, each packet with the name of its own; those after the first may fail to open.

    :raises ConfigError: in one line, if the first cannot be captured.
    """
    program = of_port(_PROTOCOLS[setup.config.carrier], link_port(setup))
    devices: dict[CaptureSocket, str] = {}
    try:
        for name in interfaces:
            try:
                devices[CaptureSocket(name, program, _BUFFER)] = name
            except ConfigError:
                if not devices:
                    raise
        until = time.monotonic() + seconds if seconds else None
        while True:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                return
            ready, _, _ = select.select(list(devices), [], [], left)
            now = round(time.time(), 6)  # as files have it
            for device in ready:
                with suppress(OSError) if len(devices) > 1 else nullcontext():
                    for frame in device.receive():
                        yield devices[device], Captured(now, frame, ETHERNET)
    finally:
        for device in devices:
            device.close()


class Table:
    """Writes packets as a table, a packet's first line with its time and ends."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._start: float | None = None

    def show(self, when: float, packet: Dissected) -> None:
        """Add a packet."""
        if self._start is None:
            self._start = when
            self._write("seconds", "from", "to", "layer", "what")
        ends = f"{packet.source}", f"{packet.destination}"
        first = (f"{when - self._start:.6f}", *ends)
        for layer, text in packet.lines:
            self._write(*first, layer, text)
            first = ("", "", "")
        self._out.flush()

    def _write(self, seconds: str, source: str, destination: str, layer: str, text: str) -> None:
        self._out.write(f"{seconds:>11}  {source:<21}  {destination:<21}  {layer:<6}  {text}\n")
