"""What the optional C extension holds; each has a plain-Python twin."""

from collections.abc import Sequence

def combine(rows: Sequence[bytes], shards: Sequence[bytes], length: int, /) -> list[bytes]: ...
def checksum(data: bytes, initial: int = 0, /) -> int: ...
def check_and_add(newer: bytearray, older: bytearray, packet: bytes, /) -> int: ...
def send_frames(
    fd: int,
    prefix: bytes,
    sum: int,
    epoch: int,
    number: int,
    flags: bytes,
    at: int,
    payloads: list[bytes],
    /,
) -> int: ...
def receive_frames(fd: int, most: int, /) -> tuple[list[tuple[bytes, bytes, list[bytes]]], list[bytes]]: ...
