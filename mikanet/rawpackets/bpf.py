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
#: Code, k, and where to go if true and if false (the next instruction if empty); or a label of what follows.
_Row = tuple[int, int, str, str] | str


def tcp_to_port(port: int, ancillary: bool = True) -> list[Instruction]:
    """A program for Ethernet frames with TCP segments to a port, over IPv4 or IPv6, that are whole: no fragments, no
    extension headers, no VLAN tags.

    :param ancillary: also ask the kernel: packets for this machine only, and no tag that the device took off.
    """
    questions: list[_Row] = [
        (_LOAD_WORD, _PACKET_TYPE, "", ""),
        (_JUMP_EQUAL, _PACKET_HOST, "", "drop"),
        (_LOAD_WORD, _VLAN_PRESENT, "", ""),
        (_JUMP_EQUAL, 0, "", "drop"),
    ]
    return _link([*(questions if ancillary else ()), *_ports(6, port, either=False)])


def of_port(protocol: int, port: int) -> list[Instruction]:
    """A program for Ethernet frames with whole TCP (6) or UDP (17) packets from or to a port."""
    return _link(_ports(protocol, port, either=True))


def _ports(protocol: int, port: int, either: bool) -> list[_Row]:
    source_v4: list[_Row] = [(_LOAD_HALF_INDEXED, 14, "", ""), (_JUMP_EQUAL, port, "accept", "")] if either else []
    source_v6: list[_Row] = [(_LOAD_HALF, 54, "", ""), (_JUMP_EQUAL, port, "accept", "")] if either else []
    return [
        (_LOAD_HALF, 12, "", ""),
        (_JUMP_EQUAL, 0x86DD, "v6", ""),
        (_JUMP_EQUAL, 0x0800, "", "drop"),
        (_LOAD_BYTE, 23, "", ""),
        (_JUMP_EQUAL, protocol, "", "drop"),
        (_LOAD_HALF, 20, "", ""),
        (_JUMP_SET, 0x3FFF, "drop", ""),
        (_LOAD_X_IHL, 14, "", ""),
        *source_v4,
        (_LOAD_HALF_INDEXED, 16, "", ""),
        (_JUMP_EQUAL, port, "accept", "drop"),
        "v6",
        (_LOAD_BYTE, 20, "", ""),
        (_JUMP_EQUAL, protocol, "", "drop"),
        *source_v6,
        (_LOAD_HALF, 56, "", ""),
        (_JUMP_EQUAL, port, "accept", "drop"),
        "accept",
        (_RETURN, ACCEPT, "", ""),
        "drop",
        (_RETURN, DROP, "", ""),
    ]


def _link(rows: Sequence[_Row]) -> list[Instruction]:
    """Labels turned into distances."""
    labels: dict[str, int] = {}
    instructions: list[tuple[int, int, str, str]] = []
    for row in rows:
        if isinstance(row, str):
            labels[row] = len(instructions)
        else:
            instructions.append(row)
    program = []
    for at, (code, k, on_true, on_false) in enumerate(instructions, 1):
        program.append((code, labels.get(on_true, at) - at, labels.get(on_false, at) - at, k))
    return program


def everything() -> list[Instruction]:
    """A program that lets every packet pass."""
    return [(_RETURN, 0, 0, ACCEPT)]


def nothing() -> list[Instruction]:
    """A program that lets no packet pass."""
    return [(_RETURN, 0, 0, DROP)]


def assemble(program: Sequence[Instruction]) -> bytes:
    """The instructions as the kernel reads them."""
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)
