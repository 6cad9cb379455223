"""Mika with flipped bits: in memory, every one; and on a running server with a real target."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections.abc import Callable, Iterator

from mikanet.address import Address
from mikanet.crypto.replay import ReplaySet
from mikanet.errors import RemoteProtocolError
from mikanet.mika.session import ClientSession, Keys, ServerSession, derive_keys
from mikanet.mika.wire import Header, Kind
from tests.lab.load import Result
from tests.lab.progress import Progress
from tests.lab.target import Target, abort
from tests.lab.tunnels import MikaTunnel

#: How much of a session the bit flips cover.
FLIPPED_BYTES = 4096


def _session(
    keys: Keys, port: int, payload: bytes, moment: int, iv: bytes, random_below: Callable[[int], int]
) -> tuple[bytes, bytes]:
    """The head, and the rest, of a session that sends ``payload`` to a target and ends."""
    client = ClientSession(keys, Header(Kind.TCP, Address("127.0.0.1", port), moment), iv, random_below)
    return client.open(), client.send(payload) + client.end()


def flips_in_memory(seed: int = 1) -> Result:
    """Every bit of the first 4 KiB of a session, flipped, into a server's session; and every bit of an answer.

    Upstream, what is delivered must be a beginning of what was sent. Downstream there is no check: exactly the flipped
    bit and the 16 bytes of the block after it may be wrong.
    """
    result = Result(f"flips in memory, {FLIPPED_BYTES * 8} bits each way, seed {seed}")
    rng = random.Random(seed)
    keys = derive_keys(rng.randbytes(24).hex().encode())
    moment = 1_700_000_000
    payload = rng.randbytes(FLIPPED_BYTES + 1000)
    session = b"".join(_session(keys, 80, payload, moment, rng.randbytes(16), rng.randrange))
    wrong = delivered = refused = 0
    for bit, changed in _flipped(session):
        server = ServerSession(keys, ReplaySet(), lambda: float(moment))
        try:
            got = b"".join(server.receive(changed))
        except RemoteProtocolError:
            refused += 1
            got = b""
        # Byte by byte too would give what precedes the fault; it is a beginning by the chunk reader's own tests.
        if not payload.startswith(got):
            wrong += 1
            result.faults.append(f"bit {bit} upstream: wrong bytes are delivered")
        delivered += len(got)
    result.figures |= {"up: wrong": wrong, "up: refused": refused, "up: bytes delivered": delivered}
    result.figures |= _flips_downstream(keys, moment, rng, result)
    return result


def _flips_downstream(keys: Keys, moment: int, rng: random.Random, result: Result) -> dict[str, float]:
    iv, answer = rng.randbytes(16), rng.randbytes(FLIPPED_BYTES)
    header = Header(Kind.TCP, Address("127.0.0.1", 80), moment)
    server = ServerSession(keys, ReplaySet(), lambda: float(moment))
    server.receive(ClientSession(keys, header, iv).open())
    wire = server.send(answer)
    exceptions = 0
    for bit, changed in _flipped(wire):
        got = ClientSession(keys, header, iv).receive(changed)
        byte = bit // 8
        block = byte // 16 * 16
        expected = bytearray(answer)
        expected[byte] ^= 0x80 >> bit % 8
        expected[block + 16 : block + 32] = got[block + 16 : block + 32]
        garbled = got[block + 16 : block + 32] != answer[block + 16 : block + 32]
        if got == bytes(expected) and garbled == (block + 16 < len(answer)):
            exceptions += 1
        else:
            result.faults.append(f"bit {bit} downstream: not the documented exception")
    return {"down: documented exceptions": exceptions}


def _flipped(data: bytes) -> Iterator[tuple[int, bytes]]:
    changed = bytearray(data)
    for bit in range(min(len(data), FLIPPED_BYTES) * 8):
        changed[bit // 8] ^= 0x80 >> bit % 8
        yield bit, bytes(changed)
        changed[bit // 8] ^= 0x80 >> bit % 8


async def flips_live(step: int = 1, *, seed: int = 1, refusal_time: float = 1.0, at_once: int = 400) -> Result:
    """Every ``step``-th bit of the first 4 KiB of sessions, flipped, to a running server with a real target."""
    bits = range(0, FLIPPED_BYTES * 8, step)
    result = Result(f"flips live, {len(bits)} sessions, seed {seed}")
    rng = random.Random(seed)
    payload = rng.randbytes(FLIPPED_BYTES + 1000)
    progress = Progress("sessions", len(bits))
    done = 0
    with MikaTunnel(refusal_time=refusal_time) as tunnel:
        keys = derive_keys(tunnel.password)
        async with Target(keep=True).running() as target:
            places = asyncio.Semaphore(at_once)

            async def one(bit: int) -> None:
                nonlocal done
                async with places:
                    head, rest = _session(keys, target.port, payload, int(time.time()), os.urandom(16), rng.randrange)
                    data = bytearray(head + rest)
                    data[bit // 8] ^= 0x80 >> bit % 8
                    reader, writer = await asyncio.open_connection("127.0.0.1", tunnel.server_port)
                    # In three pieces, so that the target is open and has bytes when the flipped bit arrives.
                    edges = (0, len(head), max(len(head), bit // 8), len(data))
                    for first, end in itertools.pairwise(edges):
                        writer.write(data[first:end])
                        await asyncio.sleep(0.02)
                    try:
                        if await asyncio.wait_for(reader.read(1), refusal_time + 45):
                            result.faults.append(f"bit {bit}: the server answered")
                    except (ConnectionError, TimeoutError) as error:
                        result.faults.append(f"bit {bit}: {type(error).__name__} instead of a FIN")
                    abort(writer)
                done += 1
                progress.at(done)

            await asyncio.gather(*(one(bit) for bit in bits))
            wrong = sum(not payload.startswith(got) for got in target.received)
            whole = sum(len(got) == len(payload) for got in target.received)
            some = sum(0 < len(got) < len(payload) for got in target.received)
            result.figures |= {
                "sessions": len(bits),
                "targets opened": target.opened,
                "a right beginning at the target": some,
                "wrong at the target": wrong,
                "whole at the target": whole,
            }
            if wrong:
                result.faults.append(f"{wrong} targets got wrong bytes")
            if whole:
                result.faults.append(f"{whole} altered sessions were delivered whole")
        if len(result.faults) > 10:
            result.faults[10:] = [f"and {len(result.faults) - 10} more"]
        result.faults += tunnel.unhandled()[:5]
    return result
