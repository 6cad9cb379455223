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
from mikanet.pickaxe import wire
from mikanet.pickaxe.client_link import ClientLink, RemoteForward
from mikanet.pickaxe.client_login import ClientLogin
from mikanet.pickaxe.keys import Secret
from mikanet.pickaxe.link import transmit
from mikanet.pickaxe.policy import Policy, Standing, choose
from mikanet.pickaxe.slots import Slot

#: How often the client looks after its carriers, in seconds.
TICK = 0.25

#: A login is repeated after this time, and given up for a new one when nothing is proved after so much (P7), times a
#: factor between these, drawn for each: two clients behind one address do not always come in the same order.
LOGIN_REPEAT, LOGIN_TIME = 1.0, 5.0
_SOONEST, _LATEST = 0.7, 1.6

#: While something is under way: silence of the carrier in use after which it is asked, and after which another takes over
#: if there is one that works (P8 asks for less than 3 s).
ASK_AFTER, FAIL_AFTER = 0.5, 1.5

#: For so long, in seconds, after data last went or came, more is expected on open connections. After that they are idle,
#: and cost what an idle session costs, until one of them says something (our choice).
ACTIVE_TIME = 3.0

#: Silence of a carrier, with something asked, after which it is cut in any case; and of all of them, after which the
#: session is taken for lost at the server (P8).
CUT_AFTER, LOST_AFTER = 10.0, 20.0

#: For so long of that, in seconds, there must have been a carrier: without one, the session waits (``keep_session``).
LOST_PROOF = 5.0

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
    :ivar link: the session; None while there is none.
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
        self._login: ClientLogin | None = None
        self._login_sent = self._login_until = 0.0
        self._candidates: list[ClientLink] = []
        self._waiting: list[Callable[[ClientLink], None]] = []
        self._current: Slot | None = None
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
        for candidate in self._candidates:
            candidate.end()
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
        self._count("carriers.opened")
        link = self.link
        if link is None:
            carrier.user = self
            self._log_in_by(carrier)
            return
        link.attach(carrier)
        if link.carrier is None:
            self._use(slot)
        else:
            self._probe(slot)

    def slot_failed(self, slot: Slot, failure: Failure) -> None:
        """See :class:`~mikanet.pickaxe.slots.SlotUser`."""
        text = " ".join((str(failure.value) or type(failure.value).__name__).split()).rstrip(".")
        self._say(slot.name, f"{shown(slot.name)} cannot be opened: {text}; trying again")

    def lost_carrier(self, carrier: ICarrier) -> None:
        """A carrier of ours is gone; the next best takes over at once."""
        slot = self._slot_of(carrier)
        if slot is None:
            return
        self._count("carriers.lost")
        slot.lost()
        if slot is self._current:
            self._current = None
            self._choose()

    def _slot_of(self, carrier: ICarrier) -> Slot | None:
        return next((slot for slot in self.slots if slot.carrier is carrier), None)

    def _fail(self, slot: Slot) -> None:
        """A carrier is silent when it should not be."""
        self._count("carriers.silent")
        if self.link is not None and slot.carrier is not None:
            self.link.detach(slot.carrier)
        slot.give_up()
        if slot is self._current:
            self._current = None
            self._choose()

    # -- ICarrierUser, for carriers on which a login goes on

    def packets_received(self, carrier: ICarrier, packets: Sequence[bytes]) -> None:
        """Answers to a login, and what candidates' servers send."""
        for packet in packets:
            if self.link is not None:
                if self.link.session.sid == packet[1:5]:
                    self.link.packets_received(carrier, [packet])
            elif packet[:1] == bytes([wire.LOGIN_RESPONSE]):
                self._answered(carrier, packet)
            else:
                for candidate in self._candidates:
                    if candidate.session.sid == packet[1:5]:
                        candidate.packets_received(carrier, [packet])
                        break

    def carrier_writable(self, carrier: ICarrier) -> None:
        """Nothing waits here."""

    def carrier_lost(self, carrier: ICarrier, reason: Failure) -> None:
        """A carrier is gone before a session used it."""
        for candidate in self._candidates:
            candidate.detach(carrier)
        self.lost_carrier(carrier)

    # -- login

    def _log_in_by(self, carrier: ICarrier) -> None:
        now = self.reactor.seconds()
        if self._login is None:
            self._begin_login(now)
        assert self._login is not None
        carrier.send([self._login.packet])

    def _begin_login(self, now: float) -> None:
        for candidate in self._candidates:
            candidate.end()
        self._candidates = []
        for slot in self.slots:
            if slot.carrier is not None:
                slot.carrier.user = self
        config = self.config
        self._login = ClientLogin(config.user, config.secret, config.random_bytes, now)
        self._login_sent = now
        drawn = int.from_bytes(config.random_bytes(2), "big") / 65_535
        self._login_until = now + LOGIN_TIME * (_SOONEST + (_LATEST - _SOONEST) * drawn)
        self._count("logins")

    def _answered(self, carrier: ICarrier, packet: bytes) -> None:
        session = None if self._login is None else self._login.response(packet)
        if session is None:
            return
        candidate = ClientLink(self, session, self._report)
        self._candidates.append(candidate)
        candidate.propose(carrier)

    def proved(self, link: ClientLink, carrier: ICarrier) -> None:
        """The server of a candidate knows the secret: that is the session."""
        if self.link is not None:
            return
        self.link, self._login = link, None
        for candidate in self._candidates:
            if candidate is not link:
                candidate.end()
        self._candidates = []
        self._count("sessions")
        self._current = self._slot_of(carrier)
        for slot in self.slots:
            if slot.carrier is not None:
                link.attach(slot.carrier)
        if self._current is not None:
            self._current.standing.answered(self.reactor.seconds())
        self._reported.clear()
        self._report(f"session with the server by {shown(carrier.name)}")
        link.begin(self._forwards)
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call(link)
        link.pump()

    def session_over(self, why: str) -> None:
        """The session is lost: its connections are reset, and a new login begins."""
        link, self.link = self.link, None
        self._current = None
        self._asked_at = None
        self._vain = 0.0
        if link is None:
            return
        self._count("sessions.lost")
        self._report(f"the session is over: {why}; logging in again")
        link.end()
        for slot in self.slots:
            slot.standing.works = False
            if slot.carrier is not None:
                slot.carrier.user = self
                self._log_in_by(slot.carrier)

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
        if slot is self._current:
            if not fresh:
                return
            self._asked_at = None
        elif slot.probed_at > float("-inf"):
            standing.round_trip = now - slot.probed_at
            slot.probed_at = float("-inf")
            self._show(slot)
        if not standing.works:
            standing.answered(now)
            self._choose()

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
            self._count("carriers.changed")
            self._report(f"the session goes on by {shown(slot.name)}")
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
            self._tend_login(now)
        else:
            self._tend_session(self.link, now)

    def _tend_login(self, now: float) -> None:
        login = self._login
        open_carriers = [slot.carrier for slot in self.slots if slot.carrier is not None]
        if login is None or not open_carriers:
            return
        if now >= self._login_until:
            if login.answered:
                self._say(
                    "login",
                    "the server answers, and then says nothing more: check that user and password are the same there;"
                    " it is also so when too many logins of this name come from one network; trying again",
                )
            else:
                self._say("login", "the server does not answer the login; trying again")
            self._begin_login(now)
        elif now - self._login_sent < LOGIN_REPEAT or login.answered:
            return
        self._login_sent = now
        for carrier in open_carriers:
            self._log_in_by(carrier)

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

    def _count(self, what: str) -> None:
        self.config.counters.add(f"pickaxe.client.{what}")

    def _say(self, about: str, text: str) -> None:
        now = self.reactor.seconds()
        if now - self._reported.get(about, -_REPEAT_TIME) >= _REPEAT_TIME:
            self._reported[about] = now
            self._report(text)

    @property
    def standings(self) -> list[Standing]:
        """What is known of each carrier."""
        return [slot.standing for slot in self.slots]
