"""Yami ("darkness"): the protocol itself, for both roles, on byte streams. No network, clock or randomness of its own.

Yami does the handshake, integrity, resumption and encryption. Bytes go in with ``feed``, what happened comes out of
``next_event``, and what is to be sent is returned. The one thing that takes long, RSA on the server, is a plain function,
:func:`answer_syn`, which its owner may run in a thread.

The client::

    NEW --connect--> SYN_SENT --SYNACK--> ACK_SENT --ACKACK--> READY <--send_message / MSG--> WAITING
    NEW --resume---> RSTOR_SENT --RSTORACK--> READY, or --REQ_REHS--> NEW

The server::

    NEW --SYN--> OPENING --syn_answered--> SYNACK_SENT --ACK--> READY <--MSG / respond--> HANDLING
    NEW --MSG_RSTOR--> READY, or, with REQ_REHS, --> REHANDSHAKE --SYN--> OPENING
"""

from __future__ import annotations

import enum
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from mikanet.crypto import rsa_oaep
from mikanet.errors import AuthenticationError, LocalProtocolError, RemoteProtocolError
from mikanet.megaki.bank import Session, TokenBank, waste_time
from mikanet.megaki.sealing import (
    RandomBytes,
    SavedSession,
    SessionKey,
    cbc_decrypt,
    cbc_encrypt,
    check_tag,
    mix,
    tag,
)
from mikanet.megaki.wire import (
    AES_BLOCK,
    ERROR_TOKEN,
    KEY,
    MAX_MESSAGE,
    TOKEN,
    VERSION,
    Ack,
    Bare,
    ErrorCode,
    Kind,
    Message,
    PacketReader,
    Syn,
    SynAck,
    encode_ack,
    encode_bare,
    encode_syn,
    encode_synack,
    open_syn,
    syn_plain,
)


class TooManyResumptionsError(RemoteProtocolError):
    """A resumption that comes too soon after others of its network."""


class ServerRefusedError(RemoteProtocolError):
    """The server answered SYN with an error.

    :ivar code: what it said; None for a code that is not known.
    """

    def __init__(self, code: ErrorCode | None) -> None:
        super().__init__(f"the server refused: {'unknown error' if code is None else code.name.lower()}")
        self.code = code


class State(enum.Enum):
    """Where one end is; the module's text has the transitions."""

    NEW = enum.auto()
    # the client's
    SYN_SENT = enum.auto()
    ACK_SENT = enum.auto()
    RSTOR_SENT = enum.auto()
    WAITING = enum.auto()
    # the server's
    REHANDSHAKE = enum.auto()
    OPENING = enum.auto()
    SYNACK_SENT = enum.auto()
    HANDLING = enum.auto()
    # of both
    READY = enum.auto()


def _kinds(*kinds: Kind) -> frozenset[Kind]:
    return frozenset(kinds)


# -- events


@dataclass(frozen=True, slots=True)
class SynArrived:
    """Server: call :func:`answer_syn` with this, and ``syn_answered`` with its result."""

    syn: Syn


@dataclass(frozen=True, slots=True)
class Established:
    """The session stands. ``reply`` is to be sent first, if there is one."""

    reply: bytes
    resumed: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """``reply`` is to be sent."""

    reply: bytes


@dataclass(frozen=True, slots=True)
class Rehandshake:
    """Client: the server does not know the session; ``connect`` may be called on the same connection."""


@dataclass(frozen=True, slots=True)
class Request:
    """Server: a request; ``respond`` has its answer."""

    plain: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Response:
    """Client: the answer."""

    plain: bytes = field(repr=False)


Event = SynArrived | Established | Reply | Rehandshake | Request | Response


# -- the server


@dataclass(frozen=True, slots=True)
class HalfOpen:
    """What the server keeps between SYNACK and ACK."""

    token: bytes
    ephemeral: bytes = field(repr=False)
    server_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SynAnswer:
    """SYNACK, and what to keep; without anything to keep it is an error, and the connection is to be closed after it."""

    packet: bytes
    half_open: HalfOpen | None


def answer_syn(private: rsa_oaep.PrivateKey, syn: Syn, random_bytes: RandomBytes, has_room: bool = True) -> SynAnswer:
    """Open a SYN and make its SYNACK: two private RSA operations and a public one.

    :param has_room: whether a new session can be remembered; if not the client is told that the service is unavailable.
    :raises RemoteProtocolError: if it is not a good SYN; the peer is told nothing.
    """
    raw_public, ephemeral, version = open_syn(syn, lambda block: rsa_oaep.decrypt(private, block))
    public = rsa_oaep.public_from_raw(raw_public)
    token, server_key = random_bytes(TOKEN), random_bytes(KEY)
    half_open = None
    if version != VERSION:
        plain = ERROR_TOKEN + _error(ErrorCode.INCOMPATIBLE_VERSION)
    elif not has_room:
        plain = ERROR_TOKEN + _error(ErrorCode.SERVICE_UNAVAILABLE)
    else:
        plain = token + server_key
        half_open = HalfOpen(token, ephemeral, server_key)
    block = rsa_oaep.encrypt(public, plain)
    return SynAnswer(encode_synack(tag(ephemeral, block), token, block), half_open)


def _error(code: ErrorCode) -> bytes:
    return bytes([code]).ljust(KEY, b"\0")


class ServerYami:
    """The server's end of one connection.

    :param group: what the client's address counts as in the bank. :param may_resume: whether its network may resume one
        more session now.
    :ivar state: where it is. :ivar session: the session, once it stands.
    """

    __slots__ = (
        *("_bank", "_group", "_half_open", "_key", "_may_resume", "_random_bytes", "_reader"),
        *("session", "state"),
    )

    def __init__(
        self,
        bank: TokenBank,
        group: str,
        random_bytes: RandomBytes,
        max_message: int = MAX_MESSAGE,
        may_resume: Callable[[float], bool] = lambda now: True,
    ) -> None:
        self.state = State.NEW
        self.session: Session | None = None
        self._bank = bank
        self._group = group
        self._random_bytes = random_bytes
        self._reader = PacketReader(max_message)
        self._may_resume = may_resume
        self._half_open: HalfOpen | None = None
        self._key: SessionKey | None = None

    @property
    def buffered(self) -> int:
        """Bytes that came and were not taken yet."""
        return len(self._reader)

    @property
    def token(self) -> bytes:
        """The session's token; there is one from READY on."""
        assert self.session is not None
        return self.session.token

    def feed(self, data: bytes) -> None:
        """Bytes from the client."""
        self._reader.feed(data)

    def next_event(self, now: float) -> Event | None:
        """What happened next, or None.

        :raises RemoteProtocolError: if the client sent what it may not; nothing more is to be read then.
        """
        if self.state is State.OPENING or self.state is State.HANDLING:
            return None  # one thing at a time; what comes early waits
        packet = self._reader.next(_SERVER_TAKES[self.state])
        if packet is None:
            return None
        if isinstance(packet, Message):
            return self._request(packet) if self.state is State.READY else self._resume(packet, now)
        if isinstance(packet, Syn):
            self.state = State.OPENING
            return SynArrived(packet)
        return self._finish(cast(Ack, packet))

    def syn_answered(self, answer: SynAnswer) -> bytes:
        """The SYNACK to send."""
        if self.state is not State.OPENING:
            raise LocalProtocolError("no SYN is waiting")
        self.state = State.SYNACK_SENT
        self._half_open = answer.half_open
        return answer.packet

    def forget_half_open(self) -> None:
        """No ACK will be taken any more."""
        self._half_open = None

    def _finish(self, ack: Ack) -> Established:
        half = self._half_open
        if half is None:
            raise AuthenticationError("an ACK without a handshake")
        check_tag(half.ephemeral, ack.sealed, ack.mac)
        plain = cbc_decrypt(half.server_key, ack.sealed)
        # One decision over both tokens: which of them was wrong shows nowhere.
        if not hmac.compare_digest(ack.token + plain[:TOKEN], half.token * 2):
            raise AuthenticationError("an ACK with another token")
        self._half_open = None
        key = SessionKey(mix(half.server_key, plain[TOKEN:]))
        session = self._bank.add(half.token, key, self._group)
        if session is None:
            raise RemoteProtocolError("no room for a session")
        self.session, self._key, self.state = session, key, State.READY
        return Established(encode_bare(Kind.ACKACK), resumed=False)

    def _resume(self, message: Message, now: float) -> Event:
        if not self._may_resume(now):
            raise TooManyResumptionsError("its network resumes too often")
        session = self._bank.find(message.token, now)
        try:
            if session is None:
                waste_time(message)
                raise AuthenticationError("an unknown token")
            start, augment = session.open_augment(message)
        except AuthenticationError:
            # The same answer for an unknown token and for a key that does not fit (K5).
            self.state = State.REHANDSHAKE
            return Reply(encode_bare(Kind.REQ_REHS))
        intermediate = SessionKey(mix(start.key, augment))
        own = self._random_bytes(KEY)
        reply = intermediate.seal(Kind.RSTORACK, session.token, own, self._random_bytes)
        self._key = SessionKey(mix(intermediate.key, own))
        session.renew(start, self._key)
        self._bank.attach(session)
        self.session, self.state = session, State.READY
        return Established(reply, resumed=True)

    def _request(self, message: Message) -> Request:
        session, key = self.session, self._key
        assert session is not None
        assert key is not None
        if not message.length:
            raise RemoteProtocolError("an empty request")
        plain = key.open(message, session.token)
        if session.previous is not None:
            session.used(key)
        self.state = State.HANDLING
        return Request(plain)

    def respond(self, plain: bytes) -> bytes:
        """The packet that answers the request."""
        if self.state is not State.HANDLING or self._key is None or self.session is None:
            raise LocalProtocolError("no request is waiting")
        self.state = State.READY
        return self._key.seal(Kind.MSG, self.session.token, plain, self._random_bytes)

    @property
    def remembered(self) -> int:
        """Number of MACs that this connection's key keeps."""
        return self._key.remembered if self._key is not None else 0

    @property
    def spent(self) -> bool:
        """Whether the key has served its time: close after the response, the client resumes (K4)."""
        return self._key is not None and self._key.spent

    def close(self, now: float) -> None:
        """The connection is gone; the session may be resumed."""
        if self.session is not None:
            self._bank.detach(self.session, now)
            self.session = None


_SERVER_TAKES = {
    State.NEW: _kinds(Kind.SYN, Kind.MSG_RSTOR),
    State.REHANDSHAKE: _kinds(Kind.SYN),
    State.SYNACK_SENT: _kinds(Kind.ACK),
    State.READY: _kinds(Kind.MSG),
}


# -- the client


class ClientYami:
    """The client's end of one connection.

    :ivar state: where it is.
    :ivar proven: whether a good response has come: ACKACK carries no proof, so before that the session may not stand
        at the server at all (K6).
    """

    __slots__ = ("_client_key", "_ephemeral", "_key", "_random_bytes", "_reader", "_token", "proven", "state")

    def __init__(self, random_bytes: RandomBytes, max_message: int = MAX_MESSAGE) -> None:
        self.state = State.NEW
        self.proven = False
        self._random_bytes = random_bytes
        self._reader = PacketReader(max_message)
        self._token = b""
        self._key: SessionKey | None = None
        self._ephemeral = b""
        self._client_key: rsa_oaep.PrivateKey | None = None

    def connect(self, server: rsa_oaep.PublicKey, client: rsa_oaep.PrivateKey) -> bytes:
        """SYN. ``client`` is a key made for this handshake alone."""
        self._must_be(State.NEW)
        self._ephemeral = self._random_bytes(KEY)
        self._client_key = client
        self.state = State.SYN_SENT
        plain = syn_plain(rsa_oaep.public_to_raw(client.public_key()), self._ephemeral)
        return encode_syn(plain, lambda block: rsa_oaep.encrypt(server, block))

    def resume(self, saved: SavedSession) -> bytes:
        """MSG_RSTOR."""
        self._must_be(State.NEW)
        augment = self._random_bytes(KEY)
        self._token = saved.token
        start = SessionKey(saved.master)
        self._key = SessionKey(mix(saved.master, augment))
        self.state = State.RSTOR_SENT
        return start.seal(Kind.MSG_RSTOR, saved.token, augment, self._random_bytes)

    def send_message(self, plain: bytes) -> bytes:
        """A request, at least one byte."""
        self._must_be(State.READY)
        if not plain:
            raise LocalProtocolError("an empty request does not exist")
        self.state = State.WAITING
        return self._session_key.seal(Kind.MSG, self._token, plain, self._random_bytes)

    @property
    def saved(self) -> SavedSession:
        """What resumes this session; there is one from READY on."""
        if self.state not in (State.READY, State.WAITING):
            raise LocalProtocolError("no session stands")
        return SavedSession(self._token, self._session_key.key)

    @property
    def spent(self) -> bool:
        """Whether the key has served its time, so that the server closes."""
        return self._key is not None and self._key.spent

    @property
    def _session_key(self) -> SessionKey:
        assert self._key is not None
        return self._key

    def _must_be(self, state: State) -> None:
        if self.state is not state:
            raise LocalProtocolError(f"not possible while {self.state.name.lower().replace('_', ' ')}")

    def feed(self, data: bytes) -> None:
        """Bytes from the server."""
        self._reader.feed(data)

    def next_event(self) -> Event | None:
        """What happened next, or None. SYNACK costs a private RSA operation.

        :raises ServerRefusedError: if the server answers with an error.
        :raises RemoteProtocolError: if it sends what it may not.
        """
        packet = self._reader.next(_CLIENT_TAKES[self.state])
        if packet is None:
            return None
        if isinstance(packet, Message):
            return self._response(packet) if self.state is State.WAITING else self._restored(packet)
        if isinstance(packet, SynAck):
            return self._acknowledge(packet)
        if cast(Bare, packet).kind is Kind.REQ_REHS:
            self.state, self._key, self._token = State.NEW, None, b""
            return Rehandshake()
        self.state = State.READY
        return Established(b"", resumed=False)

    def _acknowledge(self, synack: SynAck) -> Reply:
        client, self._client_key = self._client_key, None
        ephemeral, self._ephemeral = self._ephemeral, b""
        assert client is not None
        check_tag(ephemeral, synack.block, synack.mac)
        plain = rsa_oaep.decrypt(client, synack.block)
        if len(plain) != TOKEN + KEY:
            raise RemoteProtocolError("SYNACK's content has another length than 48")
        token, server_key = plain[:TOKEN], plain[TOKEN:]
        if hmac.compare_digest(token, ERROR_TOKEN):
            raise ServerRefusedError(_CODES.get(server_key[0]))
        if not hmac.compare_digest(token, synack.token):
            raise AuthenticationError("SYNACK's two tokens differ")
        own, iv = self._random_bytes(KEY), self._random_bytes(AES_BLOCK)
        sealed = cbc_encrypt(server_key, iv, token + own)
        self._token, self._key, self.state = token, SessionKey(mix(server_key, own)), State.ACK_SENT
        return Reply(encode_ack(tag(ephemeral, sealed), token, sealed))

    def _restored(self, message: Message) -> Established:
        intermediate = self._session_key
        augment = intermediate.open(message, self._token)
        self._key, self.state = SessionKey(mix(intermediate.key, augment)), State.READY
        self.proven = True  # only who has the master key could answer so
        return Established(b"", resumed=True)

    def _response(self, message: Message) -> Response:
        plain = self._session_key.open(message, self._token)
        self.state, self.proven = State.READY, True
        return Response(plain)


_CODES: dict[int, ErrorCode] = {int(code): code for code in ErrorCode}

_CLIENT_TAKES = {
    State.NEW: _kinds(),
    State.SYN_SENT: _kinds(Kind.SYNACK),
    State.ACK_SENT: _kinds(Kind.ACKACK),
    State.RSTOR_SENT: _kinds(Kind.RSTORACK, Kind.REQ_REHS),
    State.WAITING: _kinds(Kind.MSG),
    State.READY: _kinds(),
}
