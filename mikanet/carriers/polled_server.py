"""The server's end of polled links: who is there, and what each is answered. No I/O, no clock, no randomness of its own.

Everything here may be asked twice: resolvers repeat questions, and networks do. A repeated question gets the answer it
got before, byte by byte, while that is remembered; what it carries is taken once anyway.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from mikanet.carriers import polled_wire as wire
from mikanet.carriers.polled_arq import Receiver, Sender
from mikanet.carriers.polled_client import HIGH_WATER, LOW_WATER
from mikanet.carriers.polled_numbers import Numbers
from mikanet.errors import RemoteProtocolError
from mikanet.guard.amplification import Reached

#: Links in all.
MAX_LINKS = 4096
#: Seconds without a question after which a link is gone.
SILENCE = 60.0
#: Answers that each link remembers.
REMEMBERED = 64
MAX_STOCK = 64
#: An answer may hold so much at least, whatever its client says.
MIN_ROOM = 16
#: A repeated question that is younger than this was doubled by a network, not asked again by a resolver (seconds).
_ASKED_AGAIN = 0.05
_LEAST_HOLD = 0.1
#: Seconds without a segment, though one is due, after which a way with more room is asked for.
_STUCK = 1.0
#: Address groups that a link remembers to be reached, and seconds between two questions that ask one more to show it.
_MAX_REACHED, _ASK_TO_SHOW = 64, 1.0
#: Bytes of selective acknowledgements where answers are large, and where they are small.
_MUCH_SACK, _LITTLE_SACK = 64, 4

#: Sends an answer back on the way on which its question came; None instead of a message asks for a way with more room.
Reply = Callable[[Any, bytes | None], None]


class _Held:
    __slots__ = ("at", "path", "room")

    def __init__(self, path: Any, room: int, now: float) -> None:
        self.path = path
        self.room = room
        self.at = now


class PolledLink:
    """One link, made by :class:`PolledServer`.

    :ivar way: on which its questions come. :ivar heard_at: when the last question came. :ivar hold: seconds for which questions are held now.
    :ivar closing: the link ends: questions are answered with that.
    """

    def __init__(self, connection: int, start: wire.Start, reply: Reply, now: float) -> None:
        self.connection = connection
        self.way = start.way
        self._stock = min(start.stock, MAX_STOCK)
        self._most_hold = start.hold
        self._room = max(start.size, MIN_ROOM)
        self._reply = reply
        self._held: dict[int, _Held] = {}
        self._answered: OrderedDict[int, bytes] = OrderedDict()
        self._sender = Sender()
        self._receiver = Receiver()
        self._owe_ack = False
        self._said_at = now
        self._reached: OrderedDict[str, None] = OrderedDict()
        self._asked_to_show = float("-inf")
        self.hold = start.hold
        self.heard_at = now
        self.closing = False

    # -- the upper side

    def hold_at_most(self, size: int) -> None:
        """Keep no more bytes behind segments that are missing."""
        self._receiver.most_held = size

    def push(self, packets: Iterable[bytes]) -> None:
        """Packets to send."""
        self._sender.push(packets)

    @property
    def waiting(self) -> int:
        """Bytes that the client does not have yet."""
        return self._sender.waiting

    @property
    def writable(self) -> bool:
        """As :attr:`PolledClient.writable`."""
        return self._sender.unsent <= min(HIGH_WATER, max(LOW_WATER, 2 * self._sender.flying_bytes))

    # -- where its answers reach somebody

    def reaches(self, host: str) -> None:
        """Answers reach this address group."""
        self._reached[host] = None
        if len(self._reached) > _MAX_REACHED:
            self._reached.popitem(last=False)

    def has_reached(self, host: str) -> bool:
        """Whether they do."""
        return host in self._reached

    def ask_to_show(self, room: int, now: float) -> bool:
        """Whether a question is better answered with a request to come by TCP: there is more to say than ``room``."""
        if self._sender.waiting <= room or now - self._asked_to_show < _ASK_TO_SHOW:
            return False
        self._asked_to_show = now
        return True

    # -- questions

    def question(self, up: wire.Up, path: Any, room: int, now: float) -> list[bytes]:
        """A question came on a way with ``room`` bytes for its answer; the packets that are whole now.

        :raises RemoteProtocolError: if the client acknowledges what was never sent.
        """
        self.heard_at = now
        number = up.number
        before = self._answered.get(number)
        if before is not None:
            self._reply(path, before if len(before) <= room else None)
            return []
        held = self._held.get(number)
        if held is not None:
            self._asked_again(number, held, path, room, now)
            return []
        self._held[number] = _Held(path, min(room, self._room), now)
        self._sender.acknowledged(up.ack, up.sack, up.told, now)
        if up.twice:
            self._sender.came_twice()
        if up.sequence is None:
            return []
        self._owe_ack = True
        return self._receiver.take(up.sequence, up.data)

    def _asked_again(self, number: int, held: _Held, path: Any, room: int, now: float) -> None:
        """A resolver lost patience: it gets its answer now, and such questions are not held for as long any more."""
        held.path, held.room = path, min(room, self._room)
        age = now - held.at
        if age >= _ASKED_AGAIN:
            self.hold = max(_LEAST_HOLD, min(self.hold, 0.8 * age))
            while number in self._held:
                self._answer(now)

    def answer_with_data(self, now: float) -> bool:
        """Send what there is to send in as many answers as it takes, or as there are; whether there were any."""
        some = False
        while self._held and self._can_say():
            self._answer(now)
            some = True
        return some

    def flush(self, now: float) -> None:
        """Answer what is to be answered now, with data or without."""
        while self._held:
            if self.closing or self._can_say():
                self._answer(now)
            elif self._sender.ready and now - self._said_at > _STUCK:
                # What has to be sent does not fit into answers on this way any more: ask for one with more room.
                number, held = next(iter(self._held.items()))
                del self._held[number]
                self._reply(held.path, None)
            elif len(self._held) > self._stock or self._owe_ack:
                self._answer(now)
            else:
                return

    def _can_say(self) -> bool:
        """Whether the oldest question's answer would carry data."""
        return self._sender.ready_for(next(iter(self._held.values())).room - wire.DOWN_OVERHEAD)

    def _answer(self, now: float) -> None:
        """Answer the oldest question."""
        number, held = next(iter(self._held.items()))
        if self.closing:
            self._finish(number, held, wire.CLOSED)
            return
        receiver, sender = self._receiver, self._sender
        most_sack = _MUCH_SACK if held.room > 256 else _LITTLE_SACK
        sack = receiver.sack
        most = held.room - wire.DOWN_OVERHEAD
        room = most - (min((sack.bit_length() + 7) >> 3, most_sack) if sack else 0)
        segment = sender.take(room, now, most)
        if segment is not None:
            most_sack = min(most_sack, most - len(segment[1]))
            self._said_at = now
        backlog = sender.backlog(max(1, room)) if sender.ready else 0
        twice, receiver.twice = receiver.twice, False
        message = wire.down(now - held.at, backlog, receiver.ack, sack, most_sack, twice, *(segment or (None, b"")))
        self._owe_ack = False
        self._finish(number, held, message)

    def _finish(self, number: int, held: _Held, message: bytes) -> None:
        del self._held[number]
        self._answered[number] = message
        if len(self._answered) > REMEMBERED:
            self._answered.popitem(last=False)
        self._reply(held.path, message)

    # -- time

    @property
    def deadline(self) -> float:
        """When :meth:`tick` is due."""
        times = [self.heard_at + SILENCE]
        if self._held:
            times.append(next(iter(self._held.values())).at + self.hold)
        if (alarm := self._sender.deadline) is not None:
            times.append(alarm)
        return min(times)

    def tick(self, now: float) -> None:
        """Time has passed: questions that waited long enough are answered, segments that nobody confirms sent again."""
        deadline = self._sender.deadline
        if deadline is not None and deadline <= now:
            self._sender.time_out(now)
        while self._held and next(iter(self._held.values())).at + self.hold <= now:
            if self.hold < self._most_hold:
                self.hold = min(self._most_hold, self.hold * 1.02)
            self._answer(now)

    def drop(self) -> None:
        """Forget everything."""
        self._held.clear()
        self._answered.clear()


class PolledServer:
    """The links of one server, and the handshakes before them.

    :param reply: see :data:`Reply`. :param numbers: gives connections their numbers, 32 bits that look random: they are all
        that a stranger would have to guess.
    :param started: called with each new link; False refuses it.
    :param group_of: the address group of a way's other end, where a client keeps its address; else always the same.
    :param host_of: the address group that a way's answers go to; None if that has shown that they reach it, as by TCP.
    :ivar reached: address groups that have shown so by such a way.
    """

    def __init__(
        self,
        reply: Reply,
        numbers: Numbers,
        started: Callable[[PolledLink, Any], bool],
        group_of: Callable[[Any], str] = lambda path: "",
        host_of: Callable[[Any], str | None] = lambda path: None,
    ) -> None:
        self._reply = reply
        self._numbers = numbers
        self._started = started
        self._group_of = group_of
        self._host_of = host_of
        self.reached = Reached()
        self.links: dict[int, PolledLink] = {}

    def question(
        self, message: bytes, path: Any, room: int, now: float, way: int = 0, cautious: int | None = None
    ) -> tuple[PolledLink, list[bytes]] | None:
        """A question came.

        :param way: as the start's: a link's questions are taken on its own way only. Resolvers that minimise names ask
            for addresses first, and for what they were asked then.
        :param cautious: bytes for the answer until the asker's address has shown that answers reach it; None if there is
            to be none.
        :return: the link that it belongs to, with the packets that are whole now; None if it was all answered here.
        :raises RemoteProtocolError: if it is none, or of a link that is not here.
        """
        asked = wire.read_question(message)
        if isinstance(asked, wire.Up):
            link = self.links.get(asked.connection)
            if link is None or link.way != way:
                raise RemoteProtocolError("a question on a link that is not here")
            if not self._shown(asked.connection, path, now):
                if cautious is None:
                    raise RemoteProtocolError("a question from where no answer has reached its link")
                if link.ask_to_show(cautious, now):
                    self._reply(path, None)
                    return link, []
                room = min(room, cautious)
            return link, link.question(asked, path, room, now)
        group = self._group_of(path)
        if isinstance(asked, wire.Hello):
            self._reply(path, wire.welcome(asked.challenge, self._new_number(group, now, self._host_of(path) or "")))
            return None
        link = self.links.get(asked.connection)
        if link is None and not self._numbers.knows(asked.connection, group, now):
            raise RemoteProtocolError("a question on a link that is not here")
        if isinstance(asked, wire.Probe):
            self._probed(asked, message, path, min(asked.size, room, wire.MAX_PATTERN), cautious, now)
        elif isinstance(asked, wire.Start):
            self._reply(path, wire.STARTED if self._start(asked, path, now) else wire.CLOSED)
        else:
            self._reply(path, wire.CLOSED)
            if link is not None:
                link.closing = True
                return link, []
        return None

    def _shown(self, connection: int, path: Any, now: float) -> bool:
        """Whether the other end of a way has shown that answers reach it: on this link, by its number, or otherwise."""
        host = self._host_of(path)
        if host is None or self.reached.has(host, now):
            return True
        link = self.links.get(connection)
        if link is not None and link.has_reached(host):
            return True
        return self._numbers.shows(connection, self._group_of(path), host, now)

    def _probed(
        self, asked: wire.Probe, message: bytes, path: Any, size: int, cautious: int | None, now: float
    ) -> None:
        if self._shown(asked.connection, path, now) or size <= (cautious or 0):
            self._reply(path, wire.probed(message, size))
        else:
            self._reply(path, None)

    def _new_number(self, group: str, now: float, host: str) -> int:
        """A number that no link has."""
        connection = self._numbers.give(group, now, host)
        while connection in self.links:
            connection = self._numbers.give(group, now, host)
        return connection

    def _start(self, asked: wire.Start, path: Any, now: float) -> bool:
        if asked.connection in self.links:
            return True
        if len(self.links) >= MAX_LINKS:
            return False
        link = PolledLink(asked.connection, asked, self._reply, now)
        host = self._host_of(path)
        if host is not None and self._shown(asked.connection, path, now):
            link.reaches(host)
        self.links[asked.connection] = link
        if not self._started(link, path):
            del self.links[asked.connection]
            return False
        return True

    def forget(self, link: PolledLink) -> None:
        """A link has ended."""
        self.links.pop(link.connection, None)
        link.drop()
