"""A session: two numbered, authenticated, ordered streams of messages that outlive the paths they take.

Plain Python: time and randomness are passed in, and a carrier is nothing but a :class:`~mikanet.pickaxe.paths.Path`.
Whoever owns the session feeds it packets, takes from :meth:`Session.flush` what is to be sent where, and calls
:meth:`Session.timer_fired` when :attr:`Session.deadline` comes.

Source: the Pickaxe document, "Sessions, authentication"; decisions P2 to P5.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from mikanet.errors import LocalProtocolError, RemoteProtocolError
from mikanet.pickaxe import wire
from mikanet.pickaxe.keys import Mac, SessionKeys
from mikanet.pickaxe.paths import Path
from mikanet.pickaxe.sending import SMALL_WINDOW, SendWindow, Sent

#: How many packets, and how many bytes of them, are held out of order (P3).
MAX_HELD, MAX_HELD_BYTES = 4096, 1024 * 1024

#: When an echo is sent to learn what the peer has processed (P4): after so many packets, bytes, and seconds with
#: something unacknowledged. The second line is for reliable paths, where an acknowledgement only lets go of memory.
ASK_PACKETS, ASK_BYTES, ASK_TIME = 32, 64 * 1024, 0.05
RELIABLE_ASK_PACKETS, RELIABLE_ASK_BYTES, RELIABLE_ASK_TIME = 256, 512 * 1024, 0.2

#: Bounds of the responses that are kept after they were acknowledged, and how often one is sent again (P5).
MAX_ANSWERS, MAX_ANSWER_BYTES, ANSWER_TIME = 256, 256 * 1024, 60.0
MAX_REPEATS, REPEAT_TIME = 3, 0.1

#: The session ends here (P2).
MAX_COUNTER = 1 << 48

#: Least time, in seconds, between two echoes that tell the peer of a gap, and how much of the picture they carry.
_GAP_TIME, _GAP_BYTES = 0.05, 32

_HALF = 1 << wire.COUNTER_BITS - 1
_REPLY_KIND, _CREDIT_KIND, _KEEP_ALIVE_KIND = bytes([wire.ECHO_REPLY]), bytes([wire.CREDIT]), bytes([wire.KEEP_ALIVE])


class Role(IntEnum):
    """Which end of the session; the value is bit 0 of what it sends."""

    CLIENT = 0
    SERVER = 1


class Received(NamedTuple):
    """A message in its turn.

    :ivar kind: T without bit 0 where that only says who sends. :ivar packet: the whole packet; the body begins at 16.
    :ivar path: by which it came. :ivar counter: its number, for :meth:`Session.answer`.
    """

    kind: int
    packet: bytes
    path: Path
    counter: int

    @property
    def body(self) -> bytes:
        """What follows the header."""
        return self.packet[wire.HEADER_SIZE :]


@dataclass(slots=True)
class _Answer:
    """A response that may have to be sent again."""

    sent: Sent
    made_at: float
    repeated_at: float
    repeats: int = 0


class Session:
    """One end of a session.

    :ivar random_bytes: for echo ids, and whatever else of this session must not be guessed.
    :ivar path: what is in use for everything that does not answer a packet of another path. At the server it follows
        the client (P5); the client's owner sets it with :meth:`use`.
    :ivar proven: whether the peer has shown that it holds the key.
    :ivar rejected: packets whose MAC was wrong.
    """

    def __init__(self, role: Role, sid: bytes, keys: SessionKeys, random_bytes: Callable[[int], bytes]) -> None:
        own, peer = (keys.client, keys.server) if role is Role.CLIENT else (keys.server, keys.client)
        self.role = role
        self.sid = sid
        self.path: Path | None = None
        self.proven = False
        self.rejected = 0
        self.sending = SendWindow()
        self.random_bytes = random_bytes
        self._own_mac, self._peer_mac = Mac(own), Mac(peer)
        self._peer_bits = 1 - role
        self._next = 1
        self._expected = 1
        self._held: dict[int, Received] = {}
        self._held_bytes = 0
        self._answers: OrderedDict[int, _Answer] = OrderedDict()
        self._answer_bytes = 0
        self._aside: list[tuple[Path, list[bytes]]] = []
        self._asked: OrderedDict[bytes, int] = OrderedDict()
        self._unasked_packets = self._unasked_bytes = 0
        self._ask_at: float | None = None
        self._gap_told = float("-inf")
        self._latest = (b"", b"")  # the latest echo request: its id, and the packet
        self._highest = 0  # the highest number received
        self._probe, self._probe_id = b"", b""
        self._probes_left = 0

    # -- what the owner looks at

    @property
    def deadline(self) -> float | None:
        """When :meth:`timer_fired` is to be called, if at all."""
        ask, resend = self._ask_at, self.sending.deadline
        if ask is None or resend is None:
            return ask if resend is None else resend
        return min(ask, resend)

    @property
    def room(self) -> int:
        """Bytes that may be sent now without piling up here."""
        return self.sending.room(self.path)

    @property
    def exhausted(self) -> bool:
        """Whether the numbers are used up and a new session is needed."""
        return self._next >= MAX_COUNTER

    @property
    def processed(self) -> int:
        """The highest number processed."""
        return self._expected - 1

    def take_probe(self) -> bytes:
        """An echo request that was answered, to be repeated by another path: the answer comes again, by that (P5).

        Each is given out as often as the peer answers; empty when a new :meth:`ask` must come first.
        """
        if self._probes_left:
            self._probes_left -= 1
            return self._probe
        return b""

    def be_small(self) -> None:
        """An unreliable path is at hand: keep little unacknowledged, so that moving onto it is quick (P2b)."""
        self.sending.limit = SMALL_WINDOW

    # -- paths

    def use(self, path: Path | None, now: float) -> None:
        """Send by ``path`` from now on."""
        if path is not self.path:
            self.path = path
            if path is not None:
                path.shown = True  # by what follows
            self.sending.path_changed(path, now)

    def path_lost(self, path: Path) -> None:
        """``path`` is gone: what it took is sent again by the one in use."""
        self.sending.path_lost(path)
        if self.path is path:
            self.path = None

    # -- sending

    def send(self, kind: int, *body: bytes | memoryview, now: float, bare: bool = False) -> int:
        """Number a message and queue it; returns its number.

        :raises LocalProtocolError: when the numbers are used up.
        """
        sent = self._number(kind, body, now, bare)
        self.sending.add(sent)
        return sent.counter

    def answer(self, request: Received, kind: int, *body: bytes, now: float, bare: bool = False) -> None:
        """Send a response, by the path on which it was asked for, and again when it is asked for again (P5).

        A ``bare`` one goes by the path in use: by another, a new number would have the peer follow it there.
        """
        sent = self._number(kind, body, now, bare)
        path = request.path
        if path is self.path or path.lost or (bare and self.path is not None):
            self.sending.add(sent)
        else:
            self.sending.add_aside(sent, path, now)
            self._aside.append((path, [sent.packet]))
        self._answers[request.counter] = _Answer(sent, now, now)
        self._answer_bytes += len(sent.packet)
        self._forget_answers(now)

    def ask(self, now: float) -> None:
        """Send an echo request: its answer tells that the path works and what the peer has processed (P4)."""
        eid = self.random_bytes(wire.EID_SIZE)
        progress = wire.encode_progress(self._expected - 1, self._picture() if self._held else b"")
        sent = self._number(wire.ECHO, (wire.encode_echo(wire.ECHO_REQUEST, eid, progress),), now)
        if self.path is not None and not self.path.reliable:
            # Past what waits for room: on a path that loses, what it says of the other direction makes that room there.
            self.sending.add_aside(sent, self.path, now)
            self._aside.append((self.path, [sent.packet]))
        else:
            self.sending.add(sent)
        self._asked[eid] = sent.counter
        self._latest = (eid, sent.packet)
        self._unasked_packets = self._unasked_bytes = 0
        self._ask_at = None

    def show(self, path: Path, now: float) -> None:
        """Send something new by a path that is not in use: the peer sees that it is ours, and stays where it is."""
        path.shown = True
        sent = self._number(wire.ECHO, (_KEEP_ALIVE_KIND,), now)
        self.sending.add_aside(sent, path, now)
        self._aside.append((path, [sent.packet]))

    def flush(self, now: float) -> list[tuple[Path, list[bytes]]]:
        """What is to be sent now, and by which paths."""
        path = self.path
        if path is not None and self._unasked_packets:
            if path.reliable:
                enough = min(RELIABLE_ASK_BYTES, self.sending.bound(path) // 4)
                due = self._unasked_bytes >= enough or self._unasked_packets >= RELIABLE_ASK_PACKETS
            else:
                due = self._unasked_bytes >= ASK_BYTES or self._unasked_packets >= ASK_PACKETS
            if due:
                self.ask(now)
        groups, self._aside = self._aside, []
        if path is not None:
            packets = self.sending.take(path, now)
            if packets:
                groups.insert(0, (path, packets))
        return groups

    def timer_fired(self, now: float) -> None:
        """The deadline is here, or was: do what is due. :meth:`flush` has the packets."""
        if self._ask_at is not None and now >= self._ask_at:
            if len(self.sending):
                self.ask(now)
            else:
                self._ask_at = None
        due = self.sending.deadline
        if due is not None and now >= due and self.sending.overdue(now, self.path):
            self.ask(now)

    def _number(self, kind: int, body: tuple[bytes | memoryview, ...], now: float, bare: bool = False) -> Sent:
        counter = self._next
        if counter >= MAX_COUNTER:
            raise LocalProtocolError("a session's packet numbers are used up")
        self._next = counter + 1
        if kind in wire.SYMMETRIC:
            kind |= self.role
        mac = self._own_mac.tag(wire.mac_input(kind, self.sid, counter), *body)
        packet = b"".join((wire.header(kind, self.sid, counter, mac), *body))
        if kind & ~1 != wire.ECHO or (body and body[0][:1] == _CREDIT_KIND):
            self._unasked_packets += 1
            self._unasked_bytes += len(packet)
            if self._ask_at is None:
                reliable = self.path is None or self.path.reliable
                self._ask_at = now + (RELIABLE_ASK_TIME if reliable else ASK_TIME)
        return Sent(counter, packet, bare)

    # -- receiving

    def receive(self, packet: bytes, path: Path, now: float) -> list[Received]:
        """A packet came by ``path``; returns the messages whose turn it is now.

        What is no packet of this session's peer is dropped without a word; echoes are dealt with here.
        """
        if len(packet) < wire.HEADER_SIZE or (kind := packet[0]) & 0x81 != self._peer_bits or packet[1:5] != self.sid:
            return []
        expected = self._expected
        # wire.nearest_counter, in place: this runs for every packet.
        low = packet[5] | packet[6] << 8 | packet[7] << 16
        counter = expected + ((low - expected + _HALF) & wire.COUNTER_MASK) - _HALF
        if counter < 1 or counter - expected >= MAX_HELD:
            return []
        body = memoryview(packet)[wire.HEADER_SIZE :]
        if not self._peer_mac.matches(packet[8:16], wire.mac_input(kind, self.sid, counter), body):
            self.rejected += 1
            return []
        if counter < expected or counter in self._held:
            self._duplicate(counter, packet, path, now)
            return []
        if kind & 0x7E in wire.SYMMETRIC:
            kind &= 0x7E
        received = Received(kind, packet, path, counter)
        if counter > expected:
            if self._held_bytes + len(packet) > MAX_HELD_BYTES:
                return []
            self._hold(received)
        self._fresh(counter, packet, path, now)
        if kind == wire.ECHO:
            self._hear_echo(packet, now)
        if counter > expected:
            if now - self._gap_told >= _GAP_TIME and not path.reliable:
                self._gap_told = now
                self.ask(now)
            return []
        return self._in_turn(received, now)

    def _fresh(self, counter: int, packet: bytes, path: Path, now: float) -> None:
        """A new packet came by ``path``: the peer is there.

        A server goes on by the path of the highest number: what was long on its way, or only shows that a path is there
        (:meth:`show`), does not lead it back.
        """
        path.heard = now
        path.new += 1
        self.proven = path.proven = True
        highest, self._highest = self._highest, max(self._highest, counter)
        if self.path is path or self.role is Role.CLIENT or path.lost:
            return
        shows = packet[0] & ~1 == wire.ECHO and packet[wire.HEADER_SIZE :] == _KEEP_ALIVE_KIND
        if self.path is None or (counter > highest and not shows):
            self.use(path, now)

    def _hold(self, received: Received) -> None:
        self._held[received.counter] = received
        self._held_bytes += len(received.packet)

    def _in_turn(self, received: Received, now: float) -> list[Received]:
        messages: list[Received] = []
        turn: Received | None = received
        while turn is not None:
            self._expected += 1
            if turn.kind == wire.ECHO:
                self._echo(turn, messages, now)
            else:
                messages.append(turn)
            turn = self._held.pop(self._expected, None) if self._held else None
            if turn is not None:
                self._held_bytes -= len(turn.packet)
        return messages

    def _echo(self, received: Received, messages: list[Received], now: float) -> None:
        packet = received.packet
        what = packet[wire.HEADER_SIZE] if len(packet) > wire.HEADER_SIZE else wire.KEEP_ALIVE
        if what == wire.CREDIT:
            messages.append(received)
        elif what == wire.ECHO_REQUEST and len(packet) <= wire.HEADER_SIZE + 17 + wire.MAX_ECHO_DATA:
            self.answer(received, wire.ECHO, _REPLY_KIND, packet[wire.HEADER_SIZE + 1 :], now=now, bare=True)

    def _hear_echo(self, packet: bytes, now: float) -> None:
        """What an echo says of our own packets holds as soon as it is here, whatever its turn."""
        body = packet[wire.HEADER_SIZE :]
        try:
            eid, data = wire.decode_echo(body)
        except RemoteProtocolError:
            return
        if body[0] == wire.ECHO_REPLY:
            counter = self._asked.pop(eid, None)
            if eid == self._latest[0]:
                self._probe_id, self._probe = self._latest
                self._probes_left = MAX_REPEATS
            if counter is not None:
                self.sending.sample(counter, now)
                self._acknowledge(counter, now)
        elif body[0] == wire.ECHO_REQUEST:
            progress = wire.decode_progress(data)
            if progress is not None and progress[0] < self._next:
                self.sending.holds(*progress, now)
                self._acknowledge(progress[0], now)

    def _acknowledge(self, counter: int, now: float) -> None:
        self.sending.acknowledge(counter, now)
        asked = self._asked
        while asked and next(iter(asked.values())) <= counter:
            asked.popitem(last=False)
        if not len(self.sending):
            self._unasked_packets = self._unasked_bytes = 0
            self._ask_at = None

    def _picture(self) -> bytes:
        """Which packets are held, as the bits of :func:`~mikanet.pickaxe.wire.encode_progress`."""
        bits = bytearray(_GAP_BYTES)
        last = 0
        for counter in self._held:
            index = counter - self._expected - 1
            if index < 8 * _GAP_BYTES:
                bits[index >> 3] |= 1 << (index & 7)
                last = max(last, index >> 3)
        return bytes(bits[: last + 1])

    # -- responses that are asked for again

    def _duplicate(self, counter: int, packet: bytes, path: Path, now: float) -> None:
        """A packet came again, perhaps by somebody else's hand: it is answered where it came, and changes nothing else."""
        if (
            packet[0] & ~1 == wire.ECHO
            and packet[wire.HEADER_SIZE :][: 1 + wire.EID_SIZE] == _REPLY_KIND + self._probe_id
        ):
            path.answered = now
            path.answers += 1
        answer = self._answers.get(counter)
        if answer is None or now - answer.repeated_at < REPEAT_TIME:
            return
        if answer.sent.acknowledged:
            if answer.repeats >= MAX_REPEATS:
                return
            answer.repeats += 1
        elif answer.sent.path is None:
            return  # has not been sent at all
        elif path is self.path or path.proven:
            self.sending.again(answer.sent, path, now)
        answer.repeated_at = now
        self._aside.append((path, [answer.sent.packet]))

    def _forget_answers(self, now: float) -> None:
        answers = self._answers
        while answers:
            counter, oldest = next(iter(answers.items()))
            if not oldest.sent.acknowledged or (
                len(answers) <= MAX_ANSWERS
                and self._answer_bytes <= MAX_ANSWER_BYTES
                and now - oldest.made_at <= ANSWER_TIME
            ):
                return
            del answers[counter]
            self._answer_bytes -= len(oldest.sent.packet)
