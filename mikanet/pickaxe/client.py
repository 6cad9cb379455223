"""Pickaxe's client: one session at a time, kept alive over whatever carriers work, with connections on it.

The carriers of the user's list are opened and kept open. A login goes by each of them until one brings a session; from
then on the policy says which one carries the data, and the others are probed. A carrier that is lost, or silent when it
should not be, is replaced by the next; the session, and every connection on it, goes on (P8, P9).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.address import Address
from mikanet.carriers.urls import shown
from mikanet.counters import Counters
from mikanet.interfaces import ICarrier, ICarrierUser, IClientCarrier
from mikanet.net.server_state import ServerState
from mikanet.pickaxe import wire
from mikanet.pickaxe.client_link import ClientLink, RemoteForward
from mikanet.pickaxe.client_logins import Logins
from mikanet.pickaxe.keys import Secret
from mikanet.pickaxe.link import transmit
from mikanet.pickaxe.policy import ACTIVE_TIME, ASK_AFTER, CUT_AFTER, FAIL_AFTER, LOST_AFTER, LOST_PROOF, Policy, choose
from mikanet.pickaxe.session import Session
from mikanet.pickaxe.slots import Slot, problem_of_all

#: How often the client looks after its carriers, in seconds.
TICK = 0.25

#: Silence after which an idle session is asked, to keep it and the paths under it alive.
IDLE_ASK = 20.0

#: How often a carrier that is not in use is probed: one that has not answered yet, and one that works.
PROBE_NEW, PROBE = 1.0, 10.0

#: A carrier that works and does not answer a probe in this time, in seconds, works no more.
PROBE_ANSWER = 5.0

#: Head start of each carrier of an ordered list over the next, in seconds.
STAGGER = 0.25

#: Least time, in seconds, between two messages about the same trouble.
_REPEAT_TIME = 60.0

_log = Logger()


@dataclass(frozen=True)
class PickaxeClientConfig:
    """What a client needs besides its reactor and its carriers.

    :ivar keep_session: seconds for which connections wait for a carrier (P8).
    :ivar remote_forwards: (port at the server, destination here); port 0 is any.
    :ivar log_destinations: whether targets are named in the log.
    """

    user: str
    secret: Secret
    policy: Policy = Policy.ORDERED
    keep_session: float = 300.0
    remote_forwards: tuple[tuple[int, Address], ...] = ()
    counters: Counters = field(default_factory=Counters)
    random_bytes: Callable[[int], bytes] = os.urandom
    log_destinations: bool = False


@implementer(ICarrierUser)
class PickaxeClient:
    """A client's session, whatever carries it.

    :param report: takes one line for the user; the default logs it.
    :ivar link: the session; None while there is none. :ivar state: whether the server can be used, for front doors.
    """

    def __init__(
        self,
        reactor: Any,
        config: PickaxeClientConfig,
        carriers: Sequence[IClientCarrier],
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.reactor = reactor
        self.config = config
        self.link: ClientLink | None = None
        self.spreads = config.policy is Policy.SPREAD
        self.slots = [Slot(reactor, index, source, self) for index, source in enumerate(carriers)]
        self._report = report or (lambda text: _log.info("{text}", text=text))
        self._reported: dict[str, float] = {}
        self._forwards = [RemoteForward(port, destination) for port, destination in config.remote_forwards]
        self._logins = Logins(reactor, self, config.random_bytes)
        # One carrier is the server to its user; of several, the message says what is wrong with each.
        name = shown(carriers[0].name) if len(carriers) == 1 else f"for {config.user}"
        self.state = ServerState(reactor, name, report)
        self._doubtful = True  # whether ``state`` waits for something to come
        self._waiting: list[Callable[[ClientLink], None]] = []
        self._current: Slot | None = None
        self._moving: Slot | None = None  # what the session moves to; nothing has come by it yet
        self._asked_at: float | None = None
        self._vain = 0.0  # for how long carriers were open and asked, and nothing came back
        self._ticker: IDelayedCall | None = None
        self._turn = 0
        self._started = False

    # -- life

    def start(self) -> None:
        """Open the carriers and log in."""
        if self._started:
            return
        self._started = True
        self._doubt()
        stagger = STAGGER if self.config.policy is Policy.ORDERED else 0.0
        for index, slot in enumerate(self.slots):
            slot.start(index * stagger)
        self._tick()

    def stop(self) -> None:
        """Tell the server that the session is over, and close everything."""
        self._started = False
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        if self.link is not None:
            self.link.farewell()
            self.link.end()
            self.link = None
        self._logins.over()
        self.state.stop()
        for slot in self.slots:
            slot.stop()

    def when_linked(self, call: Callable[[ClientLink], None]) -> None:
        """Call with the session, now or as soon as there is one."""
        if self.link is not None:
            call(self.link)
        else:
            self._waiting.append(call)

    def not_waiting(self, call: Callable[[ClientLink], None]) -> None:
        """Nobody waits any more; a call that was made is no error."""
        if call in self._waiting:
            self._waiting.remove(call)

    # -- carriers

    def slot_opened(self, slot: Slot) -> None:
        """See :class:`~mikanet.pickaxe.slots.SlotUser`."""
        carrier = slot.carrier
        assert carrier is not None
        self.count("carriers.opened")
        link = self.link
        if link is None:
            carrier.user = self
            self._logins.log_in_by(carrier)
            return
        link.attach(carrier)
        if link.carrier is None:
            self._use(slot)
        else:
            self._probe(slot)

    def slot_failed(self, slot: Slot, failure: Failure) -> None:
        """See :class:`~mikanet.pickaxe.slots.SlotUser`."""
        if self.link is not None or len(self.slots) > 1:  # else the state says it
            assert slot.problem is not None
            self._say(slot.name, f"{shown(slot.name)} {slot.problem[1]}; trying again")
        self._explain()

    def lost_carrier(self, carrier: ICarrier) -> None:
        """A carrier of ours is gone; the next best takes over at once."""
        slot = self._slot_of(carrier)
        if slot is None:
            return
        self.count("carriers.lost")
        self._logins.detach(carrier)
        if self.link is not None:
            self.link.detach(carrier)
        slot.lost()
        if slot is self._current:
            self._current = None
            self._choose()
            if self._current is None:
                self._doubt()

    def _slot_of(self, carrier: ICarrier) -> Slot | None:
        return next((slot for slot in self.slots if slot.carrier is carrier), None)

    def _fail(self, slot: Slot) -> None:
        """A carrier is silent when it should not be."""
        self.count("carriers.silent")
        if self.link is not None and slot.carrier is not None:
            self.link.detach(slot.carrier)
        slot.give_up()
        if slot is self._current:
            self._current = None
            self._choose()

    # -- whether the server can be used

    def _doubt(self) -> None:
        """There is no session, or no carrier for it."""
        self._doubtful = True
        if self._started:
            self.state.trying()

    def _explain(self) -> None:
        """Say why, as far as that is known."""
        if not self._doubtful:
            return
        if all(slot.carrier is None for slot in self.slots):
            problem = problem_of_all(self.slots)
            if problem is not None:
                self.state.failed(*problem)
        elif self.link is None:
            self.state.failed(*self._logins.trouble)

    # -- ICarrierUser, for carriers on which a login goes on

    def packets_received(self, carrier: ICarrier, packets: Sequence[bytes]) -> None:
        """Answers to a login, and what candidates' servers send."""
        for packet in packets:
            link = self.link
            login = packet[:1] in (bytes([wire.LOGIN]), bytes([wire.LOGIN_RESPONSE]))
            if link is not None and not login and link.session.sid == packet[1:5]:
                link.packets_received(carrier, [packet])
            else:
                self._logins.packet(carrier, packet)
                if link is not None and link is self.link and carrier in link.paths:
                    carrier.user = link  # it hears first, and hands on what is not its own

    def carrier_writable(self, carrier: ICarrier) -> None:
        """Nothing waits here."""

    def carrier_lost(self, carrier: ICarrier, reason: Failure) -> None:
        """A carrier is gone before a session used it."""
        self.lost_carrier(carrier)

    # -- login

    @property
    def login(self) -> tuple[str, Secret]:
        """See :class:`~mikanet.pickaxe.client_logins.LoginUser`."""
        return self.config.user, self.config.secret

    def candidate(self, session: Session) -> ClientLink:
        """See :class:`~mikanet.pickaxe.client_logins.LoginUser`."""
        return ClientLink(self, session, self._report)

    def proved(self, link: ClientLink, carrier: ICarrier) -> None:
        """The server of a candidate knows the secret: that is the session, also where there was one.

        Such a server has answered the login, and not what the session asked before it by the same carrier.
        """
        if self.link is link:
            return
        if self.link is not None:
            self._drop_session("the server does not know it any more: it was started anew")
        self.link = link
        self._logins.over(link)
        self.count("sessions")
        self._current = self._slot_of(carrier)
        for slot in self.slots:
            if slot.carrier is not None:
                link.attach(slot.carrier)
        if self._current is not None:
            self._current.standing.answered(self.reactor.seconds())
        self._reported.clear()
        self._usable()
        self._report(f"session with the server by {shown(carrier.name)}")
        link.begin(self._forwards)
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call(link)
        link.pump()

    def session_over(self, why: str) -> None:
        """The session is lost: its connections are reset, and a new login begins."""
        if self.link is None:
            return
        self._drop_session(f"{why}; logging in again")
        self._logins.over()
        self._doubt()
        for slot in self.slots:
            if slot.carrier is not None:
                slot.carrier.user = self
                self._logins.log_in_by(slot.carrier)

    def _drop_session(self, why: str) -> None:
        link, self.link = self.link, None
        self._current = self._moving = None
        self._asked_at = None
        self._vain = 0.0
        assert link is not None
        self.count("sessions.lost")
        self._report(f"the session is over: {why}")
        link.end()
        for slot in self.slots:
            slot.standing.works = False

    # -- which carrier

    def heard(self, carrier: ICarrier, fresh: bool) -> None:
        """Something authentic came by ``carrier``: new, or the answer to a probe.

        Such an answer only repeats what came by another carrier; the one in use must bring something new.
        """
        slot = self._slot_of(carrier)
        if slot is None:
            return
        now = self.reactor.seconds()
        standing = slot.standing
        if fresh:
            self._vain = 0.0
            if self._doubtful:
                self._usable()
            if self.link is not None and self._logins:
                self._logins.over()  # begun in case the server had forgotten the session, which has just answered
        if slot is self._current:
            if not fresh:
                return
            self._asked_at = None
            if slot is self._moving:
                self._moving = None
                self._report(f"the session goes on by {shown(slot.name)}")
        elif slot.probed_at > float("-inf"):
            standing.round_trip = now - slot.probed_at
            slot.probed_at = float("-inf")
            self._show(slot)
        if not standing.works:
            standing.answered(now)
            self._choose()

    def _usable(self) -> None:
        """The session has a carrier that works."""
        self._doubtful = False
        self.state.usable()
        self._logins.over()

    def _choose(self) -> None:
        link = self.link
        if link is None:
            return
        now = self.reactor.seconds()
        current = None if self._current is None else self._current.standing
        best = choose(self.config.policy, [slot.standing for slot in self.slots], current, now)
        slot = None if best is None else self.slots[best.index]
        if slot is not None and (slot is not self._current or link.carrier is not slot.carrier):
            self._use(slot)

    def _use(self, slot: Slot) -> None:
        """Let ``slot`` carry the data, and show the server so."""
        link, carrier = self.link, slot.carrier
        assert link is not None
        assert carrier is not None
        if self._current is not slot:
            self.count("carriers.changed")
            self._moving = slot
        self._current = slot
        now = self.reactor.seconds()
        link.session.use(link.attach(carrier), now)
        link.session.ask(now)
        self._asked_at = now
        link.pump()

    def spread(self) -> None:
        """For policy ``spread``: the next packets go by the next of the working carriers."""
        link = self.link
        if link is None:
            return
        usable = [
            slot
            for slot in self.slots
            if slot.carrier is not None and slot.standing.works and (slot.carrier.writable or slot is self._current)
        ]
        if len(usable) > 1:
            self._turn += 1
            slot = usable[self._turn % len(usable)]
            assert slot.carrier is not None
            link.session.use(link.attach(slot.carrier), self.reactor.seconds())
            self._current = slot

    def _probe(self, slot: Slot) -> None:
        """Have a carrier that is not in use bring an answer again."""
        link, carrier = self.link, slot.carrier
        if link is None or carrier is None:
            return
        packet = link.session.take_probe()
        if packet:
            slot.probed_at = self.reactor.seconds()
            transmit(carrier, [packet])
        elif self._asked_at is None:
            self._ask()

    def _show(self, slot: Slot) -> None:
        """Have the server see that a carrier that is not in use, and works, is ours: it cuts those of strangers (X2)."""
        link = self.link
        path = None if link is None or slot.carrier is None else link.paths.get(slot.carrier)
        if link is not None and path is not None and not path.shown:
            link.session.show(path, self.reactor.seconds())
            link.pump()

    def _ask(self) -> None:
        link = self.link
        assert link is not None
        now = self.reactor.seconds()
        if self._asked_at is None:
            self._asked_at = now
        link.session.ask(now)
        link.pump()

    # -- time

    def _tick(self) -> None:
        self._ticker = self.reactor.callLater(TICK, self._tick)
        now = self.reactor.seconds()
        if self.link is None:
            self._tend_login()
        else:
            self._tend_session(self.link, now)

    def _tend_login(self) -> None:
        carriers = [slot.carrier for slot in self.slots if slot.carrier is not None]
        if carriers:
            self._explain()
            self._logins.tend(carriers)

    def _tend_session(self, link: ClientLink, now: float) -> None:
        if link.session.exhausted:
            self.session_over("its packet numbers are used up")
            return
        silent = now - link.heard
        if silent > self.config.keep_session:
            self.session_over(f"nothing was heard of the server for {self.config.keep_session:g} s")
            return
        current = self._current
        if current is None or current.carrier is None:
            self._choose()
            return
        path = link.paths.get(current.carrier)
        quiet = now - max(current.standing.opened_at, path.heard if path is not None else current.standing.opened_at)
        expecting = len(link.mux) and now - link.active < ACTIVE_TIME
        busy = bool(expecting or link.pending or len(link.session.sending))
        if quiet >= (ASK_AFTER if busy else IDLE_ASK) and self._asked_at is None:
            self._ask()
        if self._asked_at is not None and quiet >= ASK_AFTER:
            waited = now - self._asked_at
            others = any(slot.standing.works and slot is not current for slot in self.slots)
            # A reliable carrier that is full of our own data brings no answer before that is through.
            patience = max(FAIL_AFTER - ASK_AFTER, 3 * (link.session.sending.round_trip.srtt or 0.0))
            self._vain += TICK
            if not current.standing.works and waited >= max(
                ASK_AFTER, 2 * (link.session.sending.round_trip.srtt or 0.0)
            ):
                self._logins.tend([current.carrier])
            if silent >= LOST_AFTER and self._vain >= LOST_PROOF:
                self.session_over("the server does not know it any more")
                return
            if waited >= CUT_AFTER or (others and waited >= min(patience, CUT_AFTER)):
                self._fail(current)
                return
        for slot in self.slots:
            if slot is current or slot.carrier is None:
                continue
            if now - slot.standing.opened_at >= CUT_AFTER and not slot.standing.works and silent < CUT_AFTER:
                self._fail(slot)  # it opens, and nothing comes back
                continue
            if 0 < now - slot.probed_at < PROBE_NEW:
                continue
            if slot.standing.works and now - slot.probed_at > PROBE_ANSWER and slot.probed_at > float("-inf"):
                slot.standing.works = False  # it did, and does not answer now
            if now - max(slot.probed_at, self._last_heard(link, slot)) >= (PROBE if slot.standing.works else PROBE_NEW):
                self._probe(slot)
                break  # one at a time: the server repeats an answer only so often
        self._choose()

    def _last_heard(self, link: ClientLink, slot: Slot) -> float:
        path = None if slot.carrier is None else link.paths.get(slot.carrier)
        return float("-inf") if path is None else max(path.heard, path.answered)

    # --

    def count(self, what: str) -> None:
        """Count something that happened."""
        self.config.counters.add(f"pickaxe.client.{what}")

    def _say(self, about: str, text: str) -> None:
        now = self.reactor.seconds()
        if now - self._reported.get(about, -_REPEAT_TIME) >= _REPEAT_TIME:
            self._reported[about] = now
            self._report(text)
