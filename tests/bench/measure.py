"""One round of measurements of one peer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.bench import load
from tests.bench.peers import Running, running


@dataclass(frozen=True)
class Sizes:
    """How much is done in a round: bytes each way, short connections, round trips, idle connections."""

    transfer: int = 500_000_000
    connections: int = 2000
    trips: int = 2000
    idle: int = 1000


#: The figures of a round: name, unit, whether less is better.
FIGURES: dict[str, tuple[str, str, bool]] = {
    "down_cpu": ("down, CPU", "s/GB", True),
    "up_cpu": ("up, CPU", "s/GB", True),
    "down_rate": ("down", "MB/s", False),
    "up_rate": ("up", "MB/s", False),
    "connection_cpu": ("new connection, CPU", "us", True),
    "connection_rate": ("new connections", "1/s", False),
    "trip_p50": ("round trip, p50", "us", True),
    "trip_p99": ("round trip, p99", "us", True),
    "idle_memory": ("idle connection", "KB", True),
}

Round = dict[str, float]


def measure(name: str, target: int, sizes: Sizes) -> Round:
    """Start the peer afresh and take every figure once."""
    with running(name) as peer:
        load.short_connections(peer.port, target, 50)  # everything is imported and allocated once
        figures = {"idle_memory": _idle(peer, target, sizes.idle)}
        figures["down_cpu"], figures["down_rate"] = _transfer(load.download, peer, target, sizes.transfer)
        figures["up_cpu"], figures["up_rate"] = _transfer(load.upload, peer, target, sizes.transfer)
        trips = load.round_trips(peer.port, target, sizes.trips)
        figures["trip_p50"] = trips[len(trips) // 2] * 1e6
        figures["trip_p99"] = trips[len(trips) * 99 // 100] * 1e6
        before = peer.cpu()
        seconds = load.short_connections(peer.port, target, sizes.connections)
        time.sleep(0.2)
        figures["connection_cpu"] = (peer.cpu() - before) / sizes.connections * 1e6
        figures["connection_rate"] = sizes.connections / seconds
        return figures


def _idle(peer: Running, target: int, count: int) -> float:
    before = peer.rss()
    idle = load.Idle(peer.port, target, count)
    time.sleep(0.5)
    held = peer.rss() - before
    idle.close()
    time.sleep(0.5)
    return held / count / 1024


def _transfer(transfer: Callable[[int, int, int], float], peer: Running, target: int, size: int) -> tuple[float, float]:
    """CPU seconds per GB of all hops, and MB/s."""
    before = peer.cpu()
    seconds = transfer(peer.port, target, size)
    return (peer.cpu() - before) / size * 1e9, size / seconds / 1e6


def sweep(name: str, target: int, size: int, pieces: list[int], counts: list[int]) -> dict[str, list[list[float]]]:
    """Uploads and downloads in writes and reads of each size, and over each number of connections at once.

    Each row is (piece or count, CPU s/GB, MB/s).
    """
    rows: dict[str, list[list[float]]] = {
        "down by piece": [],
        "up by piece": [],
        "down by count": [],
        "up by count": [],
    }
    with running(name) as peer:
        load.short_connections(peer.port, target, 50)
        for way, transfer in (("down", load.download), ("up", load.upload)):
            for piece in pieces:
                part = size if piece >= 4096 else size // 10

                def in_pieces(proxy: int, far: int, total: int, piece: int = piece, transfer=transfer) -> float:
                    return transfer(proxy, far, total, piece)

                rows[f"{way} by piece"].append([piece, *_transfer(in_pieces, peer, target, part)])
            for count in counts:

                def at_once(proxy: int, far: int, total: int, count: int = count, transfer=transfer) -> float:
                    return load.parallel(transfer, proxy, far, total, count)

                rows[f"{way} by count"].append([count, *_transfer(at_once, peer, target, size)])
    return rows


def median(rounds: list[Round]) -> Round:
    """The median of each figure."""
    return {figure: statistics.median(each[figure] for each in rounds) for figure in rounds[0]}


def paired_ratio(ours: list[Round], theirs: list[Round]) -> Round:
    """The median over the rounds of ours divided by theirs, taken round by round, so that drift cancels."""
    return {
        figure: statistics.median(a[figure] / b[figure] for a, b in zip(ours, theirs, strict=True) if b[figure])
        for figure in ours[0]
    }
