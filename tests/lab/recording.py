"""Recordings: what crossed a wire, as a file of JSON lines, to be sent again later. Reads and writes files only."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, Self

from tests.lab.scenario import Direction, Scenario


class Piece(NamedTuple):
    """A packet, or a piece of a stream.

    :ivar time: seconds since the wire's first traffic.
    :ivar connection: which connection of a stream wire it belongs to, from 0; 0 for packets.
    """

    time: float
    direction: Direction
    data: bytes
    connection: int = 0


class Recorder:
    """Appends pieces to a file, one line each, flushed at once so that a killed wire leaves what it saw."""

    def __init__(self, path: str) -> None:
        self._file: IO[str] = open(path, "w", encoding="ascii")  # noqa: SIM115  # closed by close

    def add(self, piece: Piece) -> None:
        """Write one piece."""
        line = {
            "t": piece.time,
            "d": piece.direction.value,
            "c": piece.connection,
            "data": base64.b64encode(piece.data).decode("ascii"),
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Recorders:
    """The open recording files of a scenario, one per name."""

    def __init__(self, scenario: Scenario) -> None:
        self._files: dict[str, Recorder] = {}
        self._by_direction: dict[Direction, Recorder] = {}
        for way in Direction:
            name = scenario.towards(way).record
            if name:
                self._by_direction[way] = self._files.setdefault(name, Recorder(name))

    def add(self, piece: Piece) -> None:
        """Write a piece, if its direction is recorded."""
        recorder = self._by_direction.get(piece.direction)
        if recorder is not None:
            recorder.add(piece)

    def close(self) -> None:
        """Close every file."""
        for recorder in self._files.values():
            recorder.close()


def pieces(path: str | Path) -> Iterator[Piece]:
    """The pieces of a recording, in order."""
    with open(path, encoding="ascii") as file:
        for line in file:
            fields = json.loads(line)
            yield Piece(fields["t"], Direction(fields["d"]), base64.b64decode(fields["data"]), fields["c"])


def streams(path: str | Path, direction: Direction = Direction.UP) -> list[bytes]:
    """The bytes of each recorded connection in one direction, by connection."""
    found: dict[int, bytearray] = {}
    for piece in pieces(path):
        if piece.direction is direction:
            found.setdefault(piece.connection, bytearray()).extend(piece.data)
    return [bytes(found[number]) for number in sorted(found)]
