"""NitroSocks: what both ends of one TLS connection share. Bytes, time and randomness come in; bytes and events go out.

A link lives as long as its TLS connection; the session that it carries may outlive it. Plain Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, TypeVar

from mikanet.errors import AuthenticationError, LocalProtocolError, RemoteProtocolError
from mikanet.nitrosocks.keys import TAG, KeyChain, KeyRing, PacketKey, length_key
from mikanet.nitrosocks.states import Inner
from mikanet.nitrosocks.wire import (
    MAX_BODY,
    PHASE,
    SALT,
    Direction,
    HeaderMask,
    Packet,
    PacketReader,
    Type,
    header,
    mask_header,
)

#: Seconds from a standing TLS connection to an open session (N4).
HANDSHAKE_TIME: Final = 10.0

#: Seconds that each step of a release may take (N10).
RELEASE_TIME: Final = 5.0

#: Largest content of a DATA packet, in bytes. The format allows 16,384; one less than this would fill no TLS record, one
#: more would begin a second.
MAX_DATA: Final = 16_384 - 3 - TAG

NEVER: Final = math.inf

_DATA: Final = int(Type.DATA)
_TYPES: Final = {int(kind): kind for kind in Type}

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Token:
    """A secret that both ends share, and its owner's name at the server."""

    name: str
    secret: bytes = field(repr=False)


@dataclass(slots=True, eq=False)
class SessionKeys:
    """What a session takes from one connection to the next.

    :ivar chain: its keys. :ivar owner: for whoever keeps the session.
    """

    token: Token
    chain: KeyChain = field(repr=False)
    owner: Any = field(default=None, repr=False)


# -- events; a DATA packet's content is an event by itself, as bytes


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """The peer has proved itself, and a session stands.

    :ivar recovered: whether it is one that stood before.
    """

    session: SessionKeys
    recovered: bool


@dataclass(frozen=True, slots=True)
class KeysChanged:
    """The session's key chain is another one now."""


@dataclass(frozen=True, slots=True)
class Released:
    """The session is over by the protocol's own words: it is not to be resumed.

    :ivar clean: whether all three steps were gone through.
    """

    clean: bool


Event = bytes | SessionOpened | KeysChanged | Released


class SilenceError(RemoteProtocolError):
    """The peer did not say in time what it had to say."""


class Link:
    """One TLS connection's state machine; subclasses are its two sides.

    Feed :meth:`receive`; take :meth:`take_output` and ``events`` afterwards. After an exception the connection is to be
    ended without another word.

    :param k0: the key of all header masks of the realm.
    :ivar events: what happened, oldest first; the owner clears the list.
    """

    out: ClassVar[Direction]
    into: ClassVar[Direction]
    closed_state: ClassVar[Any]

    def __init__(self, k0: bytes, random_bytes: Callable[[int], bytes]) -> None:
        self.state: Any = None
        self.events: list[Event] = []
        self.session: SessionKeys | None = None
        self._k0 = k0
        self._random_bytes = random_bytes
        self._reader = PacketReader()
        self._salt = random_bytes(SALT)
        self._mask = HeaderMask(length_key(k0, self._salt, self.out))
        self._output: list[bytes] = []
        self._ring: KeyRing | None = None
        self._sealer: PacketKey | None = None
        self._opener: PacketKey | None = None
        self._next_opener: PacketKey | None = None
        self._phase_out = 0
        self._phase_in = 0
        self._unconfirmed = False
        self._deadline = NEVER
        self._volume = 0

    # -- what the owner calls

    def receive(self, data: bytes, now: float) -> None:
        """Bytes from the peer.

        :raises RemoteProtocolError: on anything that the protocol does not allow; the link is unusable then.
        """
        reader = self._reader
        reader.feed(data)
        while self.state is not self.closed_state:
            packet = reader.next()
            if packet is None:
                if reader.mask is not None or reader.salt is None:
                    return
                reader.mask = HeaderMask(length_key(self._k0, reader.salt, self.into))
            elif packet.type == _DATA and self.is_open and packet.phase == self._phase_in and not self._unconfirmed:
                # What (OPEN, DATA) in the tables says, without looking there for every packet of a transfer.
                assert self._opener is not None
                plain = self._opener.open(packet.header, packet.body)
                if not plain:
                    raise RemoteProtocolError("an empty DATA packet")
                self._volume += len(plain)
                self._heard(now)
                self.events.append(plain)
            else:
                self._handle(packet, now)

    def take_output(self) -> bytes:
        """What is to be sent now."""
        output, self._output = self._output, []
        return output[0] if len(output) == 1 else b"".join(output)

    def send_data(self, plain: bytes) -> None:
        """Send a DATA packet with 1 to ``MAX_DATA`` bytes of content, in a session."""
        number = (len(plain) + TAG) << 8 | _DATA | self._phase_out
        sealer = self._sealer
        assert sealer is not None
        self._output += (number ^ self._mask.next()).to_bytes(3, "big"), sealer.seal(number, plain)
        self._volume += len(plain)

    def next_deadline(self) -> float:
        """When :meth:`timer_fired` is to be called at the latest; infinity for never."""
        raise NotImplementedError

    def timer_fired(self, now: float) -> None:
        """Time has passed.

        :raises SilenceError: if the peer took too long.
        """
        raise NotImplementedError

    @property
    def is_open(self) -> bool:
        """Whether DATA can be sent."""
        raise NotImplementedError

    # -- for subclasses

    def _heard(self, now: float) -> None:
        """A packet of a session verified."""
        raise NotImplementedError

    def _handle(self, packet: Packet, now: float) -> None:
        raise NotImplementedError

    def _check(self, table: dict[tuple[S, Type | Inner], tuple[str, S]], packet: Packet) -> Type:
        """The packet's type, if it may come now. Checked before anything is opened, so that nothing has changed yet.

        :raises RemoteProtocolError: if it may not.
        """
        kind = _TYPES.get(packet.type)
        if kind is None or (self.state, kind) not in table:
            raise RemoteProtocolError(f"a packet of type {packet.type} while {self.state.value}")
        return kind

    def _follow(self, table: dict[tuple[S, Type | Inner], tuple[str, S]], key: Type | Inner, *arguments: Any) -> None:
        """Take the row of the table for an input: its action, and then its state.

        :raises RemoteProtocolError: if there is none, or the action refuses; the state stays.
        """
        row = table.get((self.state, key))
        if row is None:
            raise RemoteProtocolError(f"{key.name} while {self.state.value}")
        action, after = row
        getattr(self, f"_{action}")(*arguments)
        self.state = after

    def _send(self, packet_type: Type, plain: bytes, proof: bytes = b"") -> None:
        assert self._sealer is not None
        clear = header(packet_type | self._phase_out, len(plain) + TAG)
        self._output += mask_header(clear, self._mask), self._sealer.seal(clear, plain, proof)

    def _send_raw(self, type_byte: int, body: bytes) -> None:
        self._output += mask_header(header(type_byte, len(body)), self._mask), body

    def _open_packet(self, packet: Packet) -> bytes:
        """The content of a packet of a session, under whichever of two keys its phase says.

        :raises RemoteProtocolError: if it does not verify.
        """
        if packet.phase == self._phase_in:
            assert self._opener is not None
            plain = self._opener.open(packet.header, packet.body)
            if self._unconfirmed:
                self._confirm()
        elif self._next_opener is None:
            raise AuthenticationError("a packet under a key that was not given out")
        else:
            plain = self._next_opener.open(packet.header, packet.body)
            self._opener, self._next_opener = self._next_opener, None
            self._phase_in ^= PHASE
            self._confirm()
            self._new_phase()
        self._volume += len(plain)
        return plain

    def _new_phase(self) -> None:
        """The first packet under the key of a REFRESH verified."""

    def _confirm(self) -> None:
        assert self.session is not None
        self._unconfirmed = False
        self.session.chain.confirm()
        self.events.append(KeysChanged())

    def _enter_session(self, session: SessionKeys, session_key: bytes, unconfirmed: bool) -> None:
        """From the next packet on, both directions are under a SessionKey."""
        assert self._ring is not None
        self.session = session
        token = session.token.secret
        self._sealer = self._ring.session(session_key, token, self.out)
        self._opener = self._ring.session(session_key, token, self.into)
        self._reader.limit = MAX_BODY
        self._unconfirmed = unconfirmed
        self._deadline = NEVER

    def _made_ring(self) -> KeyRing:
        if self._ring is None:
            raise LocalProtocolError("there are no keys yet")
        return self._ring

    @property
    def _peer_salt(self) -> bytes:
        salt = self._reader.salt
        assert salt is not None
        return salt


def exactly(plain: bytes, size: int) -> bytes:
    """``plain`` if it has that size.

    :raises RemoteProtocolError: if not.
    """
    if len(plain) != size:
        raise RemoteProtocolError(f"a packet with {len(plain)} bytes of content instead of {size}")
    return plain


def random_below(random_bytes: Callable[[int], bytes], limit: int) -> int:
    """A random number below ``limit``, which is far less than 2^64, so that the bias does not matter."""
    return int.from_bytes(random_bytes(8), "big") % limit
