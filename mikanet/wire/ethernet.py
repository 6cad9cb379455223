"""Ethernet II frames and station addresses. No I/O."""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from mikanet.errors import RemoteProtocolError

IPV4, IPV6, VLAN = 0x0800, 0x86DD, 0x8100
HEADER = struct.Struct("!6s6sH")
HEADER_LENGTH = HEADER.size


class EthernetFrame(NamedTuple):
    """A frame; the payload may have padding at its end, which only the layer above can tell."""

    destination: bytes
    source: bytes
    ethertype: int
    payload: bytes


def encode(frame: EthernetFrame) -> bytes:
    """The bytes of a frame, without padding and check sequence: the device adds both."""
    return HEADER.pack(frame.destination, frame.source, frame.ethertype) + frame.payload


def decode(data: bytes) -> EthernetFrame:
    """A frame from its bytes.

    :raises RemoteProtocolError: if there is no whole header.
    """
    if len(data) < HEADER_LENGTH:
        raise RemoteProtocolError("an Ethernet header that is cut short")
    destination, source, ethertype = HEADER.unpack_from(data)
    return EthernetFrame(destination, source, ethertype, data[HEADER_LENGTH:])


def parse_mac(text: str) -> bytes:
    """A station address such as ``02:00:5e:00:53:01``, with colons or hyphens.

    :raises ValueError: if it is none.
    """
    if not re.fullmatch(r"[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}", text, re.ASCII):
        raise ValueError(f"{text!r} is not a MAC address such as 02:00:5e:00:53:01")
    return bytes.fromhex(text.replace("-", ":").replace(":", ""))


def format_mac(mac: bytes) -> str:
    """The text of a station address."""
    return mac.hex(":")
