"""NitroSocks' client side of one TLS connection. Plain Python: time and randomness are passed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from mikanet.crypto.totp import step_of
from mikanet.errors import RemoteProtocolError
from mikanet.nitrosocks.keys import (
    TAG,
    KeyChain,
    KeyRing,
    locator_of,
    make_transcript,
    mask_challenge,
    one_time_password,
    server_proof,
    sha256,
    sign,
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
from mikanet.nitrosocks.states import CLIENT_TABLE, ClientState
from mikanet.nitrosocks.wire import (
    CHALLENGE_BLOCK,
    MAX_CHALLENGE_PAD,
    MAX_JUNK,
    MIN_JUNK,
    PHASE,
    SECRET,
    Challenge,
    Direction,
    EncryptType,
    Packet,
    Type,
    decode_challenge,
    header,
    mask_header,
)

#: Least and most seconds of silence before a heartbeat (N10).
HEARTBEAT_LEAST: Final = 10.0
HEARTBEAT_SPREAD: Final = 10.0

#: Seconds that its answer may take, and how many may fail in a row.
HEARTBEAT_TIME: Final = 10.0
HEARTBEAT_MISSES: Final = 2


@dataclass(frozen=True, slots=True)
class ClientLinkConfig:
    """How a client behaves.

    :ivar decrypt: opens a challenge with the private half. :ivar wall_clock: Unix time, for the one-time password.
    :ivar least_type: the weakest cipher that is accepted.
    """

    k0: bytes = field(repr=False)
    decrypt: Callable[[bytes], bytes] = field(repr=False)
    token: Token
    random_bytes: Callable[[int], bytes]
    wall_clock: Callable[[], float]
    least_type: EncryptType = EncryptType.AES_256_GCM


class ClientLink(Link):
    """The client's end.

    :param resume: a session to be resumed and the key to begin with; None for a new one.
    :param binding: the TLS exporter's value, where it is part of the transcript (N11).
    """

    out = Direction.CLIENT
    into = Direction.SERVER
    closed_state = ClientState.CLOSED

    def __init__(
        self,
        config: ClientLinkConfig,
        now: float,
        resume: tuple[SessionKeys, bytes] | None = None,
        binding: bytes = b"",
    ) -> None:
        super().__init__(config.k0, config.random_bytes)
        self.state = ClientState.WAITING if resume is None else ClientState.RETURNING
        self._config = config
        self._resume = resume
        self._binding = binding
        self._deadline = now + HANDSHAKE_TIME
        self._token_temp = b""
        self._signature = b""
        self._heard_at = now
        self._interval = 0.0
        self._answer_by = 0.0
        self._misses = 0
        self._expected: deque[bytes] = deque()
        self._output.append(self._salt)
        self._send_junk()

    # -- what the owner calls

    @property
    def is_open(self) -> bool:
        """See :attr:`Link.is_open`."""
        return self.state is ClientState.OPEN

    @property
    def unread(self) -> bool:
        """Whether no packet of the server's has been understood yet."""
        return self.state in (ClientState.WAITING, ClientState.RETURNING) and not self._token_temp

    def disconnect(self, now: float) -> None:
        """Phase 6: release the session; the link is closed when the server has answered, or after a while."""
        if self.is_open:
            self._send(Type.DISCONNECT, b"")
            self.state = ClientState.CLOSING
            self._deadline = now + RELEASE_TIME

    def heartbeat(self, now: float) -> None:
        """Ask whether the server is there."""
        r3 = self._config.random_bytes(SECRET)
        self._send(Type.HEARTBEAT, r3)
        self._expected.append(sha256(r3))
        self._answer_by = now + HEARTBEAT_TIME

    def next_deadline(self) -> float:
        """See :meth:`Link.next_deadline`."""
        if not self.is_open:
            return self._deadline
        return self._answer_by if self._expected else self._heard_at + self._interval

    def timer_fired(self, now: float) -> None:
        """Time has passed.

        :raises SilenceError: if the server took too long.
        """
        if self.is_open:
            if not self._expected:
                if now >= self._heard_at + self._interval:
                    self.heartbeat(now)
            elif now >= self._answer_by:
                self._misses += 1
                if self._misses >= HEARTBEAT_MISSES:
                    raise SilenceError("silent for too long")
                self.heartbeat(now)
        elif now >= self._deadline:
            if self.state is not ClientState.CLOSING:
                raise SilenceError(f"too long {self.state.value}")
            self._released(clean=False)  # phase 6.1: the server was told, and does not answer

    # -- packets

    def _handle(self, packet: Packet, now: float) -> None:
        kind = self._check(CLIENT_TABLE, packet)
        if self.session is None:
            if packet.phase:
                raise RemoteProtocolError("a second key before the first one")
            self._follow(CLIENT_TABLE, kind, packet, now)
            return
        plain = self._open_packet(packet)
        self._heard(now)
        self._follow(CLIENT_TABLE, kind, plain, now)

    def _heard(self, now: float) -> None:
        self._heard_at = now
        if self._expected:  # whatever comes shows that the server is there
            self._misses = 0
            self._answer_by = now + HEARTBEAT_TIME

    def _send_junk(self) -> None:
        """Phase 2: one packet that means nothing."""
        random_bytes = self._config.random_bytes
        size = MIN_JUNK + random_below(random_bytes, MAX_JUNK - MIN_JUNK + 1)
        self._send_raw(random_bytes(1)[0], random_bytes(size))

    def _read_challenge(self, packet: Packet) -> Challenge:
        if not CHALLENGE_BLOCK <= len(packet.body) <= CHALLENGE_BLOCK + MAX_CHALLENGE_PAD:
            raise RemoteProtocolError("not the length of a challenge")
        config, body = self._config, bytes(packet.body)
        challenge = decode_challenge(config.decrypt(mask_challenge(body[:CHALLENGE_BLOCK], self._k0, self._peer_salt)))
        if challenge.encrypt_type < config.least_type:
            raise RemoteProtocolError("a weaker cipher than we accept")
        transcript = make_transcript(self._salt, self._peer_salt, body, self._binding)
        self._ring = KeyRing(challenge.encrypt_type, challenge.r1, transcript)
        self._token_temp = challenge.token_temp
        password = one_time_password(config.token.secret, step_of(config.wall_clock()))
        self._signature = sign(config.token.secret, challenge.r1, password)
        return challenge

    def _respond(self, packet: Packet, now: float) -> None:
        """Phase 3."""
        self._read_challenge(packet)
        self._sealer = self._made_ring().handshake(self._token_temp, self.out)
        self._send(Type.RESPONSE, self._signature)

    def _reconnect(self, packet: Packet, now: float) -> None:
        """Phase 5.2, first step."""
        assert self._resume is not None
        _, key = self._resume
        self._read_challenge(packet)
        sealer = self._made_ring().session(key, self._config.token.secret, self.out)
        locator = locator_of(key)
        clear = header(Type.RECONNECT, len(locator) + SECRET + TAG)
        self._output += mask_header(clear, self._mask), locator, sealer.seal(clear, self._signature)

    def _begin_session(self, packet: Packet, now: float) -> None:
        """Phase 4: the server's proof is inside the tag."""
        opener = self._made_ring().handshake(self._token_temp, self.into)
        key = exactly(opener.open(packet.header, packet.body, self._proof()), SECRET)
        self._begin(SessionKeys(self._config.token, KeyChain(key)), key, now, recovered=False)

    def _resume_session(self, packet: Packet, now: float) -> None:
        """Phase 5.2, second step."""
        assert self._resume is not None
        session, old = self._resume
        opener = self._made_ring().session(old, session.token.secret, self.into)
        key = exactly(opener.open(packet.header, packet.body, self._proof()), SECRET)
        session.chain.take(old)
        session.chain.offer(key)
        self._begin(session, key, now, recovered=True)

    def _proof(self) -> bytes:
        return server_proof(self._config.token.secret, self._made_ring().transcript, self._signature)

    def _begin(self, session: SessionKeys, key: bytes, now: float, *, recovered: bool) -> None:
        self._enter_session(session, key, unconfirmed=recovered)
        self._token_temp = self._signature = b""
        self._resume = None
        self._heard_at = now
        spread = random_below(self._config.random_bytes, 1 << 20) / (1 << 20)
        self._interval = HEARTBEAT_LEAST + HEARTBEAT_SPREAD * spread
        self.events.append(SessionOpened(session, recovered))

    def _deliver(self, plain: bytes, now: float) -> None:
        if not plain:
            raise RemoteProtocolError("an empty DATA packet")
        self.events.append(plain)

    def _ignore(self, plain: bytes, now: float) -> None:
        """We are leaving."""

    def _check_heartbeat(self, plain: bytes, now: float) -> None:
        if not self._expected or plain != self._expected.popleft():
            raise RemoteProtocolError("an answer to no question")

    def _refresh(self, plain: bytes, now: float) -> None:
        """Phase 5.1: both directions are under the new key at once, and a heartbeat says so."""
        self._refresh_quietly(plain, now)
        self.heartbeat(now)

    def _refresh_quietly(self, plain: bytes, now: float) -> None:
        session = self.session
        assert session is not None
        key = exactly(plain, SECRET)
        ring, token = self._made_ring(), session.token.secret
        self._sealer = ring.session(key, token, self.out)
        self._opener = ring.session(key, token, self.into)
        self._phase_out ^= PHASE
        self._phase_in ^= PHASE
        self._volume = 0
        session.chain.offer(key)
        self._unconfirmed = True
        self.events.append(KeysChanged())

    def _obey_disconnect(self, plain: bytes, now: float) -> None:
        """Phase 6.2."""
        exactly(plain, 0)
        self._released(clean=False)

    def _confirm_release(self, plain: bytes, now: float) -> None:
        """Phase 6, third step."""
        self._send(Type.CONFIRM, sha256(exactly(plain, SECRET)))
        self._released(clean=True)

    def _released(self, *, clean: bool) -> None:
        self.state = ClientState.CLOSED
        self._deadline = NEVER
        self.events.append(Released(clean))
