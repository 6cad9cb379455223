"""NitroSocks' server side of one TLS connection. Plain Python: time and randomness are passed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from mikanet.errors import AuthenticationError, RemoteProtocolError
from mikanet.nitrosocks.keys import (
    LOCATOR,
    TAG,
    KeyChain,
    KeyRing,
    make_transcript,
    mask_challenge,
    server_proof,
    sha256,
)
from mikanet.nitrosocks.link import (
    HANDSHAKE_TIME,
    NEVER,
    RELEASE_TIME,
    KeysChanged,
    Link,
    Released,
    SessionKeys,
    SessionOpened,
    SilenceError,
    Token,
    exactly,
    random_below,
)
from mikanet.nitrosocks.states import SERVER_TABLE, Inner, ServerState
from mikanet.nitrosocks.wire import (
    CHALLENGE_BLOCK,
    MAX_CHALLENGE_PAD,
    PHASE,
    SECRET,
    VERSION,
    Challenge,
    Direction,
    EncryptType,
    Packet,
    Type,
    encode_challenge,
)

#: Longest time, in seconds, before a challenge leaves by itself (N3).
GREETING_TIME: Final = 0.25

#: What a client may send before its session stands (N4).
MAX_HANDSHAKE_PACKETS: Final = 3
MAX_HANDSHAKE_BYTES: Final = 4096

#: When a key is refreshed (N7): seconds, bytes of content, packets of one direction.
REFRESH_TIME: Final = 120.0
REFRESH_BYTES: Final = 1 << 30
REFRESH_PACKETS: Final = 1 << 24

#: Seconds that a client may take to use a new key.
REFRESH_ANSWER_TIME: Final = 10.0

#: Seconds of silence after which a client is taken for lost (N10).
SILENCE_TIME: Final = 45.0


class Authority(Protocol):
    """What a server knows of its clients."""

    def match(self, signature: bytes, r1: bytes) -> Token | None:
        """The token with which this signature was made just now; compares all of them."""

    def verify(self, token: Token, signature: bytes, r1: bytes) -> bool:
        """Whether this token, still a good one, made the signature just now."""

    def find(self, locator: bytes) -> tuple[SessionKeys, bytes] | None:
        """The session that may be resumed under this locator, and the key that belongs to it."""


@dataclass(frozen=True, slots=True)
class ServerLinkConfig:
    """How a server behaves.

    :ivar encrypt: seals a challenge's text under the public half. :ivar wait_first: stay silent until the client speaks.
    :ivar version: what the challenge says; None leaves the field out. :ivar refresh_bytes: bytes under one key, about.
    """

    k0: bytes
    encrypt: Callable[[bytes], bytes]
    authority: Authority
    random_bytes: Callable[[int], bytes]
    encrypt_type: EncryptType = EncryptType.AES_256_GCM
    wait_first: bool = False
    version: int | None = VERSION
    refresh_time: float = REFRESH_TIME
    refresh_bytes: int = REFRESH_BYTES


class ServerLink(Link):
    """The server's end.

    :param binding: the TLS exporter's value, where it is part of the transcript (N11).
    """

    out = Direction.SERVER
    into = Direction.CLIENT
    closed_state = ServerState.CLOSED

    def __init__(self, config: ServerLinkConfig, now: float, binding: bytes = b"") -> None:
        super().__init__(config.k0, config.random_bytes)
        self.state = ServerState.GREETING
        self._config = config
        self._binding = binding
        self._deadline = now + HANDSHAKE_TIME
        delay = random_below(config.random_bytes, 1 << 20) / (1 << 20) * GREETING_TIME
        self._greet_at = NEVER if config.wait_first else now + delay
        self._challenge: Challenge | None = None
        self._challenge_body = b""
        self._may_confuse = True
        self._nonsense: RemoteProtocolError | None = None
        self._packets = 0
        self._bytes = 0
        self._heard_at = now
        self._refresh_at = NEVER
        self._r2 = b""

    # -- what the owner calls

    @property
    def is_open(self) -> bool:
        """See :attr:`Link.is_open`."""
        return self.state is ServerState.OPEN or self.state is ServerState.REFRESHING

    def receive(self, data: bytes, now: float) -> None:
        """See :meth:`Link.receive`. Nonsense before a challenge that is to come is told of when that one has left.

        If it were told of at once, no challenge would follow it, and the first length that can be nonsense, 19 bytes,
        would show what this server is.
        """
        if self.session is not None:
            super().receive(data, now)
        elif self._nonsense is None:
            try:
                self._receive_stranger(data, now)
            except RemoteProtocolError as problem:
                if self._greet_at == NEVER:
                    raise
                self._nonsense = problem

    def _receive_stranger(self, data: bytes, now: float) -> None:
        self._bytes += len(data)
        super().receive(data, now)
        if self.session is None and self._bytes > MAX_HANDSHAKE_BYTES:
            raise RemoteProtocolError("too much before a session")

    def next_deadline(self) -> float:
        """See :meth:`Link.next_deadline`."""
        soonest = min(self._deadline, self._greet_at, self._refresh_at)
        return min(soonest, self._heard_at + SILENCE_TIME) if self.is_open else soonest

    def timer_fired(self, now: float) -> None:
        """Time has passed.

        :raises SilenceError: if the peer took too long: for a proof, for using a new key, or for any word at all.
        :raises RemoteProtocolError: for nonsense that came before the challenge, which has been made now.
        """
        if self.state is ServerState.GREETING and now >= self._greet_at:
            self.state = ServerState.CHALLENGED
            self._send_challenge()
            if self._nonsense is not None:
                raise self._nonsense
        if now >= self._deadline:
            if self.state is not ServerState.CLOSING:
                raise SilenceError(f"too long {self.state.value}")
            self._released(clean=False)
        elif self.is_open and now >= self._heard_at + SILENCE_TIME:
            raise SilenceError("silent for too long")
        elif now >= self._refresh_at:
            self.refresh(now)

    @property
    def wants_refresh(self) -> bool:
        """Whether the current key has been used enough."""
        if self.state is not ServerState.OPEN or self._unconfirmed:
            return False
        return self._volume >= self._config.refresh_bytes or self._sequence >= REFRESH_PACKETS

    def refresh(self, now: float) -> None:
        """Phase 5.1: give out a new SessionKey; not while the client has not used the last one."""
        if self.state is not ServerState.OPEN:
            return
        if self._unconfirmed:
            self._refresh_at = now + 1.0
            return
        session = self.session
        assert session is not None
        key = self._config.random_bytes(SECRET)
        self._send(Type.REFRESH, key)
        ring, token = self._made_ring(), session.token.secret
        self._sealer = ring.session(key, token, self.out)
        self._phase_out ^= PHASE
        self._next_opener = ring.session(key, token, self.into)
        self._volume = 0
        self._refresh_at = NEVER
        self._deadline = now + REFRESH_ANSWER_TIME
        self.state = ServerState.REFRESHING
        session.chain.offer(key)
        self.events.append(KeysChanged())

    def notify_disconnect(self) -> None:
        """Phase 6.2: end the session now; the client is told, whether or not that reaches it."""
        if self.is_open:
            self._send(Type.DISCONNECT, b"")
            self._released(clean=False)

    # -- packets

    def _handle(self, packet: Packet, now: float) -> None:
        state = self.state
        if state is ServerState.GREETING or state is ServerState.CHALLENGED:
            self._handle_stranger(packet, now)
            return
        kind = self._check(SERVER_TABLE, packet)
        plain = self._open_packet(packet)
        self._heard_at = now
        self._follow(SERVER_TABLE, kind, plain, now)

    def _heard(self, now: float) -> None:
        self._heard_at = now

    def _handle_stranger(self, packet: Packet, now: float) -> None:
        self._packets += 1
        if self._packets > MAX_HANDSHAKE_PACKETS:
            raise RemoteProtocolError("too many packets before a session")
        key = (self.state, packet.type)
        if key in SERVER_TABLE and not packet.phase:
            # Nothing of this may change anything before it is verified as a whole.
            try:
                proven = self._prove(packet)
            except AuthenticationError:
                pass
            else:
                self._heard_at = now
                self._follow(SERVER_TABLE, Type(packet.type), *proven, now)
                return
        self._follow(SERVER_TABLE, Inner.UNVERIFIABLE)

    def _confused_early(self) -> None:
        self._may_confuse = False
        self._send_challenge()

    def _confused(self) -> None:
        if not self._may_confuse:
            raise AuthenticationError("a second packet that does not verify")
        self._may_confuse = False

    def _send_challenge(self) -> None:
        config = self._config
        random_bytes = config.random_bytes
        self._greet_at = NEVER
        challenge = Challenge(random_bytes(SECRET), random_bytes(SECRET), config.encrypt_type, config.version)
        pad = random_bytes(random_below(random_bytes, MAX_CHALLENGE_PAD + 1))
        block = mask_challenge(config.encrypt(encode_challenge(challenge)), self._k0, self._salt)
        assert len(block) == CHALLENGE_BLOCK
        self._challenge = challenge
        self._challenge_body = block + pad
        self._output.append(self._salt)
        self._send_raw(Type.CHALLENGE, self._challenge_body)

    def _prove(self, packet: Packet) -> tuple[SessionKeys | None, bytes | Token, bytes]:
        """Check a RESPONSE or RECONNECT: the session and its key, or None and the token; and the signature.

        :raises AuthenticationError: if it is not right.
        """
        challenge = self._challenge
        assert challenge is not None
        if self._ring is None:
            transcript = make_transcript(self._peer_salt, self._salt, self._challenge_body, self._binding)
            self._ring = KeyRing(challenge.encrypt_type, challenge.r1, transcript)
        authority = self._config.authority
        if packet.type == Type.RESPONSE:
            if len(packet.body) != SECRET + TAG:
                raise AuthenticationError("not the length of a response")
            opener = self._ring.handshake(challenge.token_temp, self.into)
            signature = opener.open(packet.header, packet.body)
            token = authority.match(signature, challenge.r1)
            if token is None:
                raise AuthenticationError("a signature that nobody made")
            return None, token, signature
        if len(packet.body) != LOCATOR + SECRET + TAG:
            raise AuthenticationError("not the length of a reconnection")
        found = authority.find(bytes(packet.body[:LOCATOR]))
        if found is None:
            raise AuthenticationError("a session that there is not")
        session, key = found
        opener = self._ring.session(key, session.token.secret, self.into)
        signature = opener.open(packet.header, packet.body[LOCATOR:])
        if not authority.verify(session.token, signature, challenge.r1):
            raise AuthenticationError("a signature that its token did not make")
        return session, key, signature

    def _establish_session(self, _: None, token: Token, signature: bytes, now: float) -> None:
        """Phase 4."""
        ring, challenge = self._made_ring(), self._challenge
        assert challenge is not None
        key = self._config.random_bytes(SECRET)
        self._sealer = ring.handshake(challenge.token_temp, self.out)
        self._send(Type.SESSION, key, server_proof(token.secret, ring.transcript, signature))
        self._begin(SessionKeys(token, KeyChain(key)), key, signature, now, recovered=False)

    def _recover_session(self, session: SessionKeys, old: bytes, signature: bytes, now: float) -> None:
        """Phase 5.2."""
        ring, secret = self._made_ring(), session.token.secret
        key = self._config.random_bytes(SECRET)
        self._sealer = ring.session(old, secret, self.out)
        self._send(Type.RECOVERY, key, server_proof(secret, ring.transcript, signature))
        session.chain.take(old)
        session.chain.offer(key)
        self._begin(session, key, signature, now, recovered=True)

    def _begin(self, session: SessionKeys, key: bytes, signature: bytes, now: float, *, recovered: bool) -> None:
        self._enter_session(session, key, unconfirmed=recovered)
        self._challenge = None
        self._challenge_body = b""
        self._refresh_at = now + self._config.refresh_time
        self.events.append(SessionOpened(session, recovered))

    def _deliver(self, plain: bytes, now: float) -> None:
        if not plain:
            raise RemoteProtocolError("an empty DATA packet")
        self.events.append(plain)

    def _answer_heartbeat(self, plain: bytes, now: float) -> None:
        self._send(Type.HEARTBEAT_REPLY, sha256(exactly(plain, SECRET)))

    def _new_phase(self) -> None:
        self._follow(SERVER_TABLE, Inner.NEW_PHASE)

    def _finish_refresh(self) -> None:
        if self.state is ServerState.REFRESHING:
            self._deadline = NEVER
            self._refresh_at = self._heard_at + self._config.refresh_time

    def _acknowledge_disconnect(self, plain: bytes, now: float) -> None:
        """Phase 6, second step."""
        exactly(plain, 0)
        self._r2 = self._config.random_bytes(SECRET)
        self._send(Type.DISCONNECT_ACK, self._r2)
        self._refresh_at = NEVER
        self._deadline = now + RELEASE_TIME

    def _finish_release(self, plain: bytes, now: float) -> None:
        """Phase 6, the end."""
        if plain != sha256(self._r2):
            raise RemoteProtocolError("a confirmation of something else")
        self._released(clean=True)

    def _released(self, *, clean: bool) -> None:
        self.state = ServerState.CLOSED
        self._deadline = self._refresh_at = NEVER
        self.events.append(Released(clean))

    @property
    def _sequence(self) -> int:
        assert self._sealer is not None
        assert self._opener is not None
        return max(self._sealer.sequence, self._opener.sequence)
