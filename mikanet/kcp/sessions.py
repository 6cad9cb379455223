"""The sessions of a KCP server: by remote address and conv, opened by a first packet, within limits (Q5, Q6).

An address may hold two sessions: one whose peer has proven that it is live, and one that has not yet. The first dies
only when the second is proven, so a recorded or forged first packet ends nobody's session.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from twisted.internet.interfaces import IProtocolFactory, IReactorTime

from mikanet.counters import Counters
from mikanet.crypto.packet_keys import BLOCKS
from mikanet.filters.base import Filter
from mikanet.filters.packets import deliver
from mikanet.interfaces import IAuthenticatingFactory
from mikanet.kcp.failures import COSTLY_FAILURES_IN_ALL, FAILURES_IN_ALL, FailureLimit
from mikanet.kcp.filter import KcpFilter, Trust
from mikanet.kcp.link import (
    FEC_TYPES,
    LinkSettings,
    RandomBytes,
    conv_bytes,
    conv_of,
    kcp_datagram,
    kcp_stack,
    random_u32,
    shared_sealer,
)
from mikanet.kcp.ports import PacketPath
from mikanet.kcp.segment import opens_session
from mikanet.kcp.voices import ServerVoice
from mikanet.relay import MemoryBudget

#: Ended sessions that late packets must not open again, and for how long (seconds).
_MAX_ENDED, _ENDED_FOR = 4096, 60.0


@dataclass(slots=True, eq=False)
class _Session:
    conv: int
    bottom: Filter
    kcp: KcpFilter
    born: float
    live: bool = False


class KcpSessions:
    """Turns the packets of a port into sessions with protocols of ``factory`` on top.

    A factory that is an :class:`~mikanet.interfaces.IAuthenticatingFactory` says when a peer is authenticated, and brings
    the budget; with others the proof that the peer is live counts as that.

    :param budget: that what sessions keep counts in.
    :ivar counters: what happened, under ``kcp.server.*``.
    """

    def __init__(
        self,
        port: Any,
        settings: LinkSettings,
        factory: IProtocolFactory,
        clock: IReactorTime,
        random_bytes: RandomBytes,
        counters: Counters,
        budget: MemoryBudget | None = None,
    ) -> None:
        self._port = port
        self._settings = settings
        self._factory = factory
        self._clock = clock
        self._random_bytes = random_bytes
        self.counters = counters
        self._trust, self._budget = Trust.PROVEN, budget
        if IAuthenticatingFactory.providedBy(factory) and not settings.require_proof:
            self._trust = Trust.TOLD
            self._budget = budget or cast(IAuthenticatingFactory, factory).budget
        self._unauthenticated: dict[_Session, None] = {}  # the oldest first
        self._sealer = shared_sealer(settings, random_bytes, server=True)
        costly = BLOCKS[settings.block].costly
        self._failures = FailureLimit(clock, COSTLY_FAILURES_IN_ALL if costly else FAILURES_IN_ALL)
        self._voice = ServerVoice(clock)
        self._by_peer: dict[Any, list[_Session]] = {}
        self._per_source: dict[Any, int] = {}
        self._unproven: dict[Any, int] = {}  # per source too
        self._unproven_count = 0
        self._count = 0
        self._ended: OrderedDict[tuple[Any, int], float] = OrderedDict()

    def __len__(self) -> int:
        return self._count

    def packets_received(self, peer: Any, packets: Sequence[bytes]) -> bool:
        """A batch of sealed packets from one peer; whether one of them could be opened, and had not been before."""
        source = self._port.source_of(peer)
        if self._is_proven(source):
            return self._open_packets(peer, source, list(packets))
        good = False
        while packets:
            # What is allowed are failures: packets that are good use up nothing.
            allowed = self._failures.allowance(source)
            if not allowed:
                self.counters.add("kcp.server.dropped.unopened", len(packets))
                break
            good = self._open_packets(peer, source, list(packets[:allowed])) or good
            packets = packets[allowed:]
        return good

    def _open_packets(self, peer: Any, source: Any, packets: list[bytes]) -> bool:
        refused, repeated = self._sealer.refused, self._sealer.repeated
        bodies = self._sealer.open(packets)
        if len(bodies) < len(packets):
            self.counters.add("kcp.server.dropped.repeated", self._sealer.repeated - repeated)
            if self._sealer.refused > refused:
                self.counters.add("kcp.server.dropped.check", self._sealer.refused - refused)
                self._failures.failed(source, self._sealer.refused - refused)
                if not bodies and not self._is_proven(source):
                    self._voice.failed(source, str(getattr(self._port.address_of(peer), "host", peer)), len(packets))
        if bodies:
            self._voice.opened(source)
        self._sort(peer, bodies)
        return bool(bodies)

    def _is_proven(self, source: Any) -> bool:
        """Whether some session of the source is live, of whichever of its ports."""
        return self._per_source.get(source, 0) > self._unproven.get(source, 0)

    def _sort(self, peer: Any, bodies: list[bytes]) -> None:
        """Give each packet to its session, whole runs at a time."""
        run: list[bytes] = []
        current: _Session | None = None
        head = None
        for body in bodies:
            if body[:4] == head and body[4:5] < FEC_TYPES:
                run.append(body)
                continue
            conv = conv_of(body)
            if current is None or (conv is not None and conv != current.conv):
                self._deliver(peer, current, run)
                run = []
                current = self._session_for(peer, conv, body)
                if current is None:
                    head = None
                    continue
                head = conv_bytes(current.conv)
            run.append(body if self._settings.has_fec else kcp_datagram(body))
        self._deliver(peer, current, run)

    def _session_for(self, peer: Any, conv: int | None, body: bytes) -> _Session | None:
        sessions = self._by_peer.get(peer)
        if sessions:
            if conv is None:
                return sessions[0]
            for session in sessions:
                if session.conv == conv:
                    return session
        if conv is None or conv == -1 or opens_session(kcp_datagram(body), self._settings.rcv_wnd) is None:
            self.counters.add("kcp.server.dropped.stray")
            return None
        return self._open(peer, conv)

    def _deliver(self, peer: Any, session: _Session | None, bodies: list[bytes]) -> None:
        if session is None or not bodies:
            return
        deliver(session.bottom, bodies)
        if session.kcp.authenticated:
            self._unauthenticated.pop(session, None)
        if not session.live and session.kcp.proven and session in self._by_peer.get(peer, ()):
            session.live = True
            self._failures.proven(self._port.source_of(peer))
            self._forget_unproven(self._port.source_of(peer))
            for other in [other for other in self._by_peer.get(peer, ()) if other is not session]:
                self.counters.add("kcp.server.replaced")
                other.kcp.abortConnection()

    # -- opening and ending

    def _open(self, peer: Any, conv: int) -> _Session | None:
        refusal = self._refusal(peer, conv)
        if refusal is not None:
            self.counters.add(f"kcp.server.refused.{refusal}")
            return None
        upper = self._factory.buildProtocol(self._port.address_of(peer))
        if upper is None:
            self.counters.add("kcp.server.refused.factory")
            return None
        settings = self._settings
        bottom, kcp = kcp_stack(
            upper, conv, settings, self._clock, random_u32(self._random_bytes), self._trust, self._budget
        )
        session = _Session(conv, bottom, kcp, self._clock.seconds())
        self._unauthenticated[session] = None
        self._by_peer.setdefault(peer, []).append(session)
        source = self._port.source_of(peer)
        self._per_source[source] = self._per_source.get(source, 0) + 1
        self._unproven[source] = self._unproven.get(source, 0) + 1
        self._unproven_count += 1
        self._count += 1
        self.counters.add("kcp.server.opened")
        bottom.makeConnection(
            PacketPath(self._port, peer, self._sealer, settings.packet_room, lambda: self._forget(peer, session))
        )
        return session

    def _refusal(self, peer: Any, conv: int) -> str | None:
        """Why no session may be opened now, or None."""
        now = self._clock.seconds()
        if self._ended.get((peer, conv), now) > now:
            return "ended"
        sessions = self._by_peer.get(peer, [])
        for session in [session for session in sessions if not session.live]:
            if now - session.born < self._settings.patience.probation:
                return "probation"
            session.kcp.abortConnection()
        if self._budget is not None and self._budget.exhausted:
            return "memory"
        source = self._port.source_of(peer)
        if self._per_source.get(source, 0) >= self._settings.max_sessions_per_host:
            return "host"
        if self._settings.require_proof and (
            self._unproven_count >= self._settings.max_probation
            or self._unproven.get(source, 0) >= self._settings.max_probation_per_host
        ):
            return "probation"
        if self._count >= self._settings.max_sessions:
            # Sources can be forged: those who are known stay, and of the others the last have their chance.
            oldest = next(iter(self._unauthenticated), None)
            if oldest is None:
                return "sessions"
            self.counters.add("kcp.server.displaced")
            oldest.kcp.abortConnection()
        return None

    def _forget_unproven(self, source: Any) -> None:
        self._unproven_count -= 1
        self._unproven[source] -= 1
        if not self._unproven[source]:
            del self._unproven[source]

    def _forget(self, peer: Any, session: _Session) -> None:
        sessions = self._by_peer[peer]
        sessions.remove(session)
        if not sessions:
            del self._by_peer[peer]
        source = self._port.source_of(peer)
        self._per_source[source] -= 1
        if not self._per_source[source]:
            del self._per_source[source]
        self._count -= 1
        self._unauthenticated.pop(session, None)
        if not session.live:
            self._forget_unproven(source)
        self._ended[peer, session.conv] = self._clock.seconds() + _ENDED_FOR
        if len(self._ended) > _MAX_ENDED:
            self._ended.popitem(last=False)

    def abort_all(self) -> None:
        """End every session now."""
        for sessions in list(self._by_peer.values()):
            for session in list(sessions):
                session.kcp.abortConnection()
