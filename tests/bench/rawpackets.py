"""What a packet costs a raw port: microseconds to send and to receive one, over a veth pair in two namespaces. Needs root.

    python -m tests.bench.rawpackets [--seconds 1] [--rounds 5] [--length 1326]

Ways are measured in turn, so that other work on the machine meets them alike; the best round of each counts. Sending
includes what the kernel does with the packet at the far end, which on a veth pair happens in the sender's time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address

from mikanet.rawpackets import device as device_module
from mikanet.rawpackets.bpf import tcp_to_port
from mikanet.rawpackets.device import FrameDevice, PacketSocket
from mikanet.rawpackets.firewall import Firewall, NftRules
from mikanet.rawpackets.frames import FlagCycle, FrameMaker, FramePath, open_frame
from mikanet.rawpackets.hold import hold_port
from mikanet.wire.ethernet import parse_mac
from tests.lab.veth import VethNamespace, VethPair
from tests.support.peers import require_program

PORT, OTHER = 9999, 40000
_BATCH = 27  # what a flush of KCP sends at a time during a download, as measured


def _open(space: VethNamespace, port: int, backend: str) -> FrameDevice:
    with space.entered():
        if backend == "pcap":
            from mikanet.rawpackets.pcap import PcapDevice

            return PcapDevice(space.interface, port, 64 << 20)
        return PacketSocket(space.interface, tcp_to_port(port), 64 << 20)


@contextlib.contextmanager
def _silence(pair: VethPair, way: str) -> Iterator[None]:
    """The far kernel as the way wants it: answering, silenced by rules, or by a held port."""
    with contextlib.ExitStack() as stack:
        with pair.second.entered():
            if way == "rules":
                firewall = Firewall(PORT, NftRules(require_program("nft")))
                firewall.install()

                def remove() -> None:
                    with pair.second.entered():
                        firewall.remove()

                stack.callback(remove)
            elif way != "answering":
                held = hold_port(PORT, random.randint)
                assert held is not None
                stack.callback(held.release)
        yield


def _measure(pair: VethPair, way: str, seconds: float, payloads: list[bytes]) -> tuple[float, float]:
    """Microseconds to send and to receive one packet."""
    backend = "pcap" if way == "pcap" else "packet"
    near, far = _open(pair.first, OTHER, backend), _open(pair.second, PORT, backend)
    path = FramePath(
        (parse_mac(pair.second.mac), parse_mac(pair.first.mac)),
        ip_address(pair.first.address),
        ip_address(pair.second.address),
        (OTHER, PORT),
        FlagCycle([0x18]),
    )
    maker = FrameMaker(0)
    sending = receiving = 0.0
    sent = got = 0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        sent += near.send_packets(maker, path, payloads)
        between = time.perf_counter()
        waiting = len(payloads)
        while waiting > 0:
            runs, _ = far.receive_runs()
            waiting -= sum(len(run[2]) for run in runs)
            if not runs:
                break
        got += len(payloads) - waiting
        sending += between - began
        receiving += time.perf_counter() - between
    near.close()
    far.close()
    assert got > 0.9 * sent, (way, got, sent)
    return sending / sent * 1e6, receiving / got * 1e6


def _in_memory(payloads: list[bytes]) -> tuple[float, float]:
    """Microseconds to make and to open one frame in plain Python."""
    path = FramePath((bytes(6), bytes(6)), ip_address("10.0.0.1"), ip_address("10.0.0.2"), (1, 2), FlagCycle([0x18]))
    maker = FrameMaker(0)
    frames = maker.make(path, payloads)

    def best(call: Callable[[], object]) -> float:
        times = []
        for _ in range(7):
            began = time.perf_counter()
            for _ in range(100):
                call()
            times.append((time.perf_counter() - began) / 100 / len(payloads) * 1e6)
        return min(times)

    return best(lambda: maker.make(path, payloads)), best(lambda: [open_frame(frame) for frame in frames])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.rawpackets", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=1326)
    options = parser.parse_args()
    payloads = [os.urandom(options.length) for _ in range(_BATCH)]
    batches = device_module._send_frames, device_module._receive_frames
    ways = ["C, held port", "plain, held port", "C, rules", "C, answering", "pcap, held port"]
    best: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    with VethPair() as pair:
        for _ in range(options.rounds):
            for way in ways:
                kind, _, silence = way.partition(", ")
                fast = batches if kind == "C" else (None, None)
                device_module._send_frames, device_module._receive_frames = fast
                with _silence(pair, silence):
                    measured = _measure(pair, "pcap" if kind == "pcap" else way, options.seconds, payloads)
                best[way].append(measured)
    device_module._send_frames, device_module._receive_frames = batches
    print(f"microseconds per packet of {options.length} bytes, best of {options.rounds}, runs of {_BATCH}")
    print(f"{'way':<20}{'send':>8}{'receive':>10}")
    for way, found in best.items():
        print(f"{way:<20}{min(each[0] for each in found):>8.2f}{min(each[1] for each in found):>10.2f}")
    made, opened = _in_memory(payloads)
    print(f"{'in memory, plain':<20}{made:>8.2f}{opened:>10.2f}")


if __name__ == "__main__":
    main()
