"""Classic BPF programs that let the kernel sort packets before they reach us. No I/O.

An instruction is ``code u16 | jt u8 | jf u8 | k u32`` in the machine's byte order: jump offsets count from the next
instruction. Source: ``<linux/filter.h>``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

_INSTRUCTION = struct.Struct("=HBBI")

_LOAD_HALF, _LOAD_BYTE, _LOAD_WORD = 0x28, 0x30, 0x20  # absolute
_LOAD_HALF_INDEXED = 0x48  # X + k
_LOAD_X_IHL = 0xB1  # X = 4 * (byte k & 15)
_JUMP_EQUAL, _JUMP_SET = 0x15, 0x45
_RETURN = 0x06

# What only the kernel knows of a packet: SKF_AD_OFF and offsets from it.
_ANCILLARY = 0xFFFFF000
_PACKET_TYPE = _ANCILLARY + 4
_VLAN_PRESENT = _ANCILLARY + 48
_PACKET_HOST = 0

ACCEPT = 0x40000
DROP = 0

Instruction = tuple[int, int, int, int]


def tcp_to_port(port: int, ancillary: bool = True) -> list[Instruction]:
    """A program for Ethernet frames with TCP segments to a port, over IPv4 or IPv6, that are whole: no fragments, no
    extension headers, no VLAN tags.

    :param ancillary: also ask the kernel: packets for this machine only, and no tag that the device took off.
    """
    prologue: list[tuple[int, int, str, str]] = []
    if ancillary:
        prologue = [
            (_LOAD_WORD, _PACKET_TYPE, "", ""),
            (_JUMP_EQUAL, _PACKET_HOST, "", "drop"),
            (_LOAD_WORD, _VLAN_PRESENT, "", ""),
            (_JUMP_EQUAL, 0, "", "drop"),
        ]
    body = [
        (_LOAD_HALF, 12, "", ""),
        (_JUMP_EQUAL, 0x86DD, "v6", ""),
        (_JUMP_EQUAL, 0x0800, "", "drop"),
        (_LOAD_BYTE, 23, "", ""),
        (_JUMP_EQUAL, 6, "", "drop"),
        (_LOAD_HALF, 20, "", ""),
        (_JUMP_SET, 0x3FFF, "drop", ""),
        (_LOAD_X_IHL, 14, "", ""),
        (_LOAD_HALF_INDEXED, 16, "", ""),
        (_JUMP_EQUAL, port, "accept", "drop"),
        (_LOAD_BYTE, 20, "", ""),  # v6
        (_JUMP_EQUAL, 6, "", "drop"),
        (_LOAD_HALF, 56, "", ""),
        (_JUMP_EQUAL, port, "accept", "drop"),
        (_RETURN, ACCEPT, "", ""),  # accept
        (_RETURN, DROP, "", ""),  # drop
    ]
    rows = prologue + body
    labels = {"accept": len(rows) - 2, "drop": len(rows) - 1, "v6": len(prologue) + 10}
    program = []
    for at, (code, k, on_true, on_false) in enumerate(rows):
        jumps = (labels[name] - at - 1 if name else 0 for name in (on_true, on_false))
        program.append((code, *jumps, k))
    return program  # type: ignore[return-value]  # the generator gives two


def everything() -> list[Instruction]:
    """A program that lets every packet pass."""
    return [(_RETURN, 0, 0, ACCEPT)]


def nothing() -> list[Instruction]:
    """A program that lets no packet pass."""
    return [(_RETURN, 0, 0, DROP)]


def assemble(program: Sequence[Instruction]) -> bytes:
    """The instructions as the kernel reads them."""
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)
