"""How Mika ends, and does not end: kills, cuts, clocks that jump, and a large transfer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
from pathlib import Path

from tests.lab.load import Result, one_request, transfer
from tests.lab.mika.wired import Wired
from tests.lab.target import Target, abort, connect, content, receive, send
from tests.lab.tunnels import CLOCK_FILE, SHIFTED_CLOCK, MikaTunnel, set_clock


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


async def killed_while_dialling(count: int = 10) -> Result:
    """SIGKILL to the server while it still dials targets: the applications must see a reset, for they were promised one.

    The target is a listener whose queue is full, so that dialling takes for ever.
    """
    result = Result(f"server killed while it dials for {count} applications")
    with socket.socket() as listener, contextlib.ExitStack() as fillers, MikaTunnel() as tunnel:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        waiting = [await connect(tunnel.socks_port, listener.getsockname()[1]) for _ in range(count)]
        await asyncio.sleep(0.5)
        tunnel.kill_server()
        resets = 0
        for reader, writer in waiting:
            try:
                await asyncio.wait_for(reader.read(1), 5)
            except ConnectionError:
                resets += 1
            except TimeoutError:
                result.faults.append("an application saw no end within 5 s")
            abort(writer)
        tunnel.start_server()
        result.figures["resets"] = resets
        if resets != count:
            result.faults.append(f"{count - resets} of {count} applications saw a clean end")
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
        with Wired(f"cut-after@{way}=500KB cut={kind}") as wired:
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
