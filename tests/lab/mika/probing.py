"""Mika to strangers: recorded first flights sent again, and probes of every class."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from tests.lab import prober, probes
from tests.lab.load import Result, one_request
from tests.lab.mika.wired import Recorded
from tests.lab.probes import Probe
from tests.lab.progress import Progress, note
from tests.lab.target import Target

#: Flights that are recorded together and replayed together: half a second's worth, so that their age is known that well.
_TOGETHER = 50


async def replays(
    count: int,
    times: Sequence[float] = probes.REPLAY_TIMES,
    *,
    refusal_time: float = 2.0,
    per_second: float = 100,
    significance: float = 0.01,
) -> Result:
    """Recorded first flights sent again to the server that accepted them, each at every chosen age; and over a restart.

    None may be accepted, which the target would notice, and none may be answered otherwise than random bytes are.
    """
    result = Result(f"replays, {count} first flights at {', '.join(f'{t:g}' for t in times)} s and over a restart")
    found: dict[str, list[prober.Reaction]] = {f"replay at {age:g} s": [] for age in times}
    progress = Progress("recorded", count)
    good = 0
    with Recorded(refusal_time) as recorded:
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
            verdict = prober.compare(reactions, significance, classes=len(found) + 1)
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
    per_class: int,
    *,
    refusal_time: float = 2.0,
    per_second: float = 200,
    seed: int = 1,
    recorded_count: int = 200,
    significance: float = 0.01,
) -> Result:
    """Every class of probes, replays of all ages aside, on a server that has accepted the flights that are altered."""
    result = Result(f"probes, {per_class} per class, refusal time {refusal_time:g} s, seed {seed}")
    with Recorded(refusal_time) as recorded:
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
            verdict = prober.compare(found, significance)
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
