"""The promises of Mika that are measured: replays, probes, flipped bits, kills and clocks.

What is not special to Mika (load, soak) is in :mod:`tests.lab.load` and :mod:`tests.lab.soak`. Each function starts the
tunnel that it needs and answers a :class:`~tests.lab.load.Result`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

from mikanet.address import Address
from mikanet.crypto.replay import ReplaySet
from mikanet.errors import RemoteProtocolError
from mikanet.mika.session import ClientSession, Keys, ServerSession, derive_keys
from mikanet.mika.wire import Header, Kind
from tests.lab import prober, probes
from tests.lab.load import Result, one_request
from tests.lab.probes import Probe
from tests.lab.progress import Progress, note
from tests.lab.recording import streams
from tests.lab.target import Target, abort, connect, content, receive, send
from tests.lab.tunnels import CLOCK_FILE, SHIFTED_CLOCK, MikaTunnel, set_clock
from tests.support.processes import Process, free_port

#: How much of a session the bit flips cover.
FLIPPED_BYTES = 4096


# -- replays and probes


class _Wired:
    """A tunnel with a wire in front of its server."""

    def __init__(self, scenario: str, refusal_time: float = 2.0) -> None:
        self.wire_port = free_port()
        self.tunnel = MikaTunnel(refusal_time=refusal_time, through=self.wire_port)
        self.file = self.tunnel.folder / "flights"
        command = [sys.executable, "-m", "tests.lab", "wire", scenario.format(file=self.file)]
        command += ["--tcp", f"{self.wire_port}=127.0.0.1:{self.tunnel.server_port}"]
        self.wire = Process(command, ports=[self.wire_port])

    def __enter__(self) -> Self:
        try:
            self.tunnel.__enter__()
        except BaseException:
            self.wire.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.tunnel.close()
        self.wire.stop()


class _Recorded(_Wired):
    """A wire that records what clients send."""

    def __init__(self, refusal_time: float) -> None:
        super().__init__("record@up={file}", refusal_time)

    async def record(self, target: Target, count: int, per_second: float) -> list[bytes]:
        """``count`` good connections, one after the other at an even pace; what each client sent first."""
        before = len(self._flights())
        started = time.monotonic()
        for number in range(count):
            await asyncio.sleep(max(0.0, started + number / per_second - time.monotonic()))
            await one_request(self.tunnel, target, 100)
        flights = self._flights()[before:]
        assert len(flights) == count, f"{len(flights)} flights for {count} connections"
        return flights

    def _flights(self) -> list[bytes]:
        return streams(self.file)


#: Flights that are recorded together and replayed together: half a second's worth, so that their age is known that well.
_TOGETHER = 50


async def replays(
    count: int, times: Sequence[float] = probes.REPLAY_TIMES, *, refusal_time: float = 2.0, per_second: float = 100
) -> Result:
    """Recorded first flights sent again to the server that accepted them, each at every chosen age; and over a restart.

    None may be accepted, which the target would notice, and none may be answered otherwise than random bytes are.
    """
    result = Result(f"replays, {count} first flights at {', '.join(f'{t:g}' for t in times)} s and over a restart")
    found: dict[str, list[prober.Reaction]] = {f"replay at {age:g} s": [] for age in times}
    progress = Progress("recorded", count)
    good = 0
    with _Recorded(refusal_time) as recorded:
        tunnel = recorded.tunnel
        async with Target().running() as target:

            async def replay(flights: Sequence[bytes], name: str, age: float) -> None:
                await asyncio.sleep(age)
                batch = _alternating(flights, name, len(found[name]))
                server = ("127.0.0.1", tunnel.server_port)
                limit = refusal_time + 35
                found[name] += await prober.run(server, batch, limit=limit, per_second=2 * per_second, seed=good)

            tasks = []
            for _ in range(0, count, _TOGETHER):
                flights = await recorded.record(target, _TOGETHER, per_second)
                good += len(flights)
                progress.at(good)
                tasks += [asyncio.create_task(replay(flights, f"replay at {age:g} s", age)) for age in times]
            await asyncio.gather(*tasks)
            # Younger than the time window when they come again: a server that forgets would accept them.
            flights = await recorded.record(target, min(count, int(20 * per_second)), per_second)
            good += len(flights)
            tunnel.kill_server()
            await asyncio.get_running_loop().run_in_executor(None, tunnel.start_server)
            found["replay after restart"] = []
            await replay(flights, "replay after restart", 0.0)
            opened = target.opened - good
            await one_request(tunnel, target)
        for name, reactions in found.items():
            verdict = prober.compare(reactions, classes=len(found) + 1)
            note(f"-- {name}\n{prober.report(verdict)}")
            result.faults += verdict.faults
        replayed = sum(reaction.name in found for reactions in found.values() for reaction in reactions)
        result.figures |= {"good": good, "replayed": replayed, "accepted": opened}
        if opened:
            result.faults.append(f"{opened} replays were accepted")
        result.faults += tunnel.unhandled()[:5]
    return result


def _alternating(flights: Sequence[bytes], name: str, seed: object) -> list[Probe]:
    """Each flight in the order of its recording, with a baseline probe before or behind it, by chance.

    By chance, because other work comes at an even pace too, and would always meet the same one of both.
    """
    rng = random.Random(f"{name}/{seed}")
    out = []
    for flight, baseline in zip(flights, probes.baseline_probes(len(flights), f"{name}/{seed}"), strict=True):
        pair = [Probe(name, flight), baseline]
        rng.shuffle(pair)
        out += pair
    return out


async def probing(
    per_class: int, *, refusal_time: float = 2.0, per_second: float = 200, seed: int = 1, recorded_count: int = 200
) -> Result:
    """Every class of probes, replays of all ages aside, on a server that has accepted the flights that are altered."""
    result = Result(f"probes, {per_class} per class, refusal time {refusal_time:g} s, seed {seed}")
    with _Recorded(refusal_time) as recorded:
        async with Target().running() as target:
            flights = await recorded.record(target, recorded_count, 100)
            opened = target.opened
            batch = [*probes.random_probes(per_class, seed, gap=min(0.02, refusal_time / 200))]
            batch += probes.replay_probes(flights, per_class, "replay at once")
            batch += probes.altered_probes(flights, per_class, seed)
            found = await prober.run(
                ("127.0.0.1", recorded.tunnel.server_port),
                probes.shuffled(batch, seed),
                limit=refusal_time + 35,
                per_second=per_second,
                seed=seed,
                progress=Progress("probes", len(batch), every=5),
            )
            verdict = prober.compare(found)
            note(prober.report(verdict))
            times = [reaction.seconds for reaction in found]
            result.faults += verdict.faults
            result.figures |= {
                "probes": len(found),
                "classes": len(verdict.table),
                "bytes back": sum(reaction.received for reaction in found),
                "FIN": sum(reaction.close == "fin" for reaction in found),
                "targets opened": target.opened - opened,
                "least s": min(times),
                "most s": max(times),
                "least p": min(row[5] for row in verdict.table),
            }
            if target.opened != opened:
                result.faults.append(f"{target.opened - opened} targets were opened by probes")
        result.faults += recorded.tunnel.unhandled()[:5]
    return result


# -- flipped bits


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


# -- kills and clocks


async def killed_mid_download(downloads: int = 20, size: int = 10**9) -> Result:
    """SIGKILL to the server while applications download: each must see a reset, and a restart must heal."""
    result = Result(f"server killed during {downloads} downloads")
    loop = asyncio.get_running_loop()
    with MikaTunnel() as tunnel:
        async with Target().running() as target:
            got = 0
            ends: list[str] = []

            async def one(number: int) -> None:
                nonlocal got
                mine = 0
                try:
                    reader, writer = await connect(tunnel.socks_port, target.port)
                    writer.write(b"down %d %d\n" % (size, number))
                    while data := await reader.read(65536):
                        if data != content(number, mine, len(data)):
                            result.faults.append("wrong bytes before the kill")
                            break
                        mine += len(data)
                        got += len(data)
                    ends.append("clean")
                    abort(writer)
                except ConnectionError as error:
                    ends.append(type(error).__name__)

            tasks = [asyncio.create_task(one(number)) for number in range(downloads)]
            began = time.monotonic()
            while got < 50_000_000 and time.monotonic() - began < 30 and not ends:
                await asyncio.sleep(0.05)
            if ends or got < 50_000_000:
                result.faults.append(f"before the kill: {got} bytes, {len(ends)} downloads ended")
            tunnel.kill_server()
            _, pending = await asyncio.wait(tasks, timeout=10)
            for task in pending:
                task.cancel()
            await loop.run_in_executor(None, tunnel.start_server)
            up = time.perf_counter()
            while time.perf_counter() - up < 30:
                try:
                    await asyncio.wait_for(one_request(tunnel, target), 5)
                    break
                except (OSError, TimeoutError):
                    await asyncio.sleep(0.02)
            recovery = time.perf_counter() - up
            result.figures |= {
                "resets": sum(end != "clean" for end in ends),
                "clean ends": ends.count("clean"),
                "no end in 10 s": len(pending),
                "recovery s": recovery,
            }
            if "clean" in ends:
                result.faults.append(f"{ends.count('clean')} applications saw a clean end")
            if pending:
                result.faults.append(f"{len(pending)} applications saw no end within 10 s")
            if recovery > 5:
                result.faults.append(f"the next connection worked {recovery:.1f} s after the restart")
        result.faults += tunnel.unhandled()[:5]
    return result


async def cuts(seed: int = 1) -> Result:
    """The connection between client and server is cut in the middle of a transfer, by a reset and by a forged FIN.

    A reset must reach whoever waits for more as a reset. So must a forged FIN upstream, where the protocol marks the
    true end (M5). Downstream it has no mark: there a forged FIN looks like the end, which is the documented exception.
    """
    result = Result("cuts in the middle of transfers")
    size = 2_000_000
    seen: dict[str, str] = {}
    for way, kind in itertools.product(("down", "up"), ("reset", "fin")):
        with _Wired(f"cut-after@{way}=500KB cut={kind}") as wired:
            async with Target().running() as target:
                reader, writer = await connect(wired.tunnel.socks_port, target.port)
                writer.write(b"%s %d %d\n" % (way.encode(), size, seed))
                try:
                    if way == "up":
                        await send(writer, size, seed)
                    whole = await asyncio.wait_for(receive(reader, 1 if way == "up" else size, seed), 20)
                    at_application = "whole" if whole else "fin"
                except TimeoutError:
                    at_application = "nothing"
                except ConnectionError:
                    at_application = "reset"
                await asyncio.sleep(0.5)
                name = f"{kind} {way}"
                seen[name] = at_application if way == "down" else ",".join(target.short_ends)
                abort(writer)
            result.faults += wired.tunnel.unhandled()[:5]
    expected = {"reset down": "reset", "fin down": "fin", "reset up": "reset", "fin up": "reset"}
    for name, end in seen.items():
        result.figures[f"{name} seen as {end}"] = 1
        if end != expected[name]:
            result.faults.append(f"{name}: seen as {end or 'nothing'}, not as {expected[name]}")
    return result


async def clock_jumps(count: int = 100, jump: float = 3600.0) -> Result:
    """Wall clocks of client and server jump forward and back while tunnels are open: none may be lost.

    New tunnels must work whenever the clock is not behind. While it is, the server refuses them on purpose: it cannot
    know that what it is shown is not a replay of what it has forgotten (M3).
    """
    result = Result(f"clock jumps of {jump:g} s, {count} open tunnels")
    tunnel = MikaTunnel()
    try:
        clock = Path(tunnel.folder) / "clock"
        set_clock(clock, 0.0)
        env = {CLOCK_FILE: str(clock)}
        tunnel.start_server(env, SHIFTED_CLOCK)
        tunnel.start_client(env, SHIFTED_CLOCK)
        async with Target().running() as target:
            streams_open = [await connect(tunnel.socks_port, target.port) for _ in range(count)]
            for _, writer in streams_open:
                writer.write(b"echo\n")
            for step, ahead in enumerate((0.0, jump, 0.0, -jump, 0.0)):
                set_clock(clock, ahead)
                await asyncio.sleep(2.5)
                lost = 0
                for reader, writer in streams_open:
                    try:
                        writer.write(b"%d" % step)
                        lost += await asyncio.wait_for(reader.readexactly(1), 5) != b"%d" % step
                    except (OSError, TimeoutError, asyncio.IncompleteReadError):
                        lost += 1
                works = 0
                for _ in range(5):
                    try:
                        await asyncio.wait_for(one_request(tunnel, target), 2)
                        works += 1
                    except (OSError, TimeoutError):
                        if ahead >= 0:
                            result.faults.append(f"clock at {ahead:+g} s: a new tunnel failed")
                result.figures[f"{step}: at {ahead:+g} s lost"] = lost
                result.figures[f"{step}: new of 5"] = works
                if lost:
                    result.faults.append(f"clock at {ahead:+g} s: {lost} of {count} open tunnels were lost")
            for _, writer in streams_open:
                abort(writer)
        result.faults += tunnel.unhandled()[:5]
    finally:
        tunnel.close()
    return result


async def large_transfer(size: int = 10**9, seed: int = 1) -> Result:
    """One gigabyte down and up, exact, in writes of random sizes; then the ends that a tunnel must carry."""
    from tests.lab.load import transfer

    with MikaTunnel() as tunnel:
        async with Target().running() as target:
            result = await transfer(tunnel, target, size, seed)
            reader, writer = await connect(tunnel.socks_port, target.port)
            writer.write(b"down 1000 1\n")
            writer.write_eof()
            if not await receive(reader, 1000, 1) or await reader.read():
                result.faults.append("a half-closed request was not answered whole")
            abort(writer)
        result.faults += tunnel.unhandled()[:5]
    return result
