"""Sazukari ("the gift", what one is given by the server): the client library.

Everything gives Deferreds, which coroutines can await::

    client = Sazukari(reactor, endpoint, load_public(open("server.cert", "rb").read(), "server.cert"))
    session = await client.connect()
    print(await session.send_message(b"hello"))
    saved = session.saved
    session = await client.resume(saved)  # a new connection, without RSA where the server still knows the session

A session takes one request at a time; more wait in order. A request that gets no answer fails, and its session with it.
After 4,096 requests a session ends: requests that were not sent fail, and :attr:`Session.saved` resumes it with a new key.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from twisted.internet import error
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from mikanet import prompt
from mikanet.crypto import rsa_oaep
from mikanet.errors import LocalProtocolError, MikanetError, RemoteProtocolError
from mikanet.guard.deadlines import Deadlines
from mikanet.megaki.sealing import RandomBytes, SavedSession
from mikanet.megaki.wire import MAX_MESSAGE
from mikanet.megaki.yami import ClientYami, Established, Event, Rehandshake, Reply, Response, ServerRefusedError

__all__ = [
    "MegakiError",
    "SavedSession",
    "Sazukari",
    "ServerRefusedError",
    "Session",
    "SessionLostError",
    "TimedOutError",
]

#: How long, in seconds, connecting with its handshake and a request may take. The second is above what a server takes
#: to find a worker and to wait for it.
CONNECT_TIME, REQUEST_TIME = 8.0, 25.0

#: How long, in seconds, a resumption may take before there is a handshake instead: a server that will not have it is silent.
RESUME_TIME = 4.0

#: RSA keys made ahead, each for one handshake (K6).
READY_KEYS = 2


#: Why a session takes no more requests though nothing is wrong.
SPENT = "the session's key has carried all the requests that it may: resume the session"


class MegakiError(MikanetError):
    """Something went wrong with a session."""


class SessionLostError(MegakiError):
    """The connection ended before the answer came: the server could not, or did not want to, answer."""


class TimedOutError(MegakiError):
    """The answer did not come in time."""


class KeyStock:
    """RSA keys made ahead in a thread.

    :param run: runs a function in a thread and gives its result as a Deferred.
    """

    def __init__(
        self,
        exponent: int,
        size: int = READY_KEYS,
        run: Callable[..., Deferred[Any]] = deferToThread,
        generate: Callable[[int], rsa_oaep.PrivateKey] = rsa_oaep.generate,
    ) -> None:
        self._exponent = exponent
        self._size = size
        self._run = run
        self._generate = generate
        self._ready: deque[rsa_oaep.PrivateKey] = deque()
        self._wanted: deque[Deferred[rsa_oaep.PrivateKey]] = deque()
        self._making = 0

    def take(self) -> Deferred[rsa_oaep.PrivateKey]:
        """A key that nobody else gets."""
        if self._ready:
            key = succeed(self._ready.popleft())
        else:
            key = Deferred(self._wanted.remove)
            self._wanted.append(key)
        self.fill()
        return key

    def fill(self) -> None:
        """Make what is missing, one at a time."""
        if not self._making and len(self._ready) < self._size + len(self._wanted):
            self._making += 1
            self._run(self._generate, self._exponent).addCallbacks(self._made, self._not_made)

    def _made(self, key: rsa_oaep.PrivateKey) -> None:
        self._making -= 1
        if self._wanted:
            self._wanted.popleft().callback(key)
        else:
            self._ready.append(key)
        self.fill()

    def _not_made(self, failure: Failure) -> None:
        self._making -= 1
        while self._wanted:
            self._wanted.popleft().errback(failure)


class Session(Protocol):
    """A connection with a session on it; :class:`Sazukari` makes them.

    :ivar resumed: whether it was resumed rather than made anew.
    :ivar established: fires with this session when it stands.
    :ivar on_lost: called with this session when its connection is gone.
    """

    transport: Any

    def __init__(self, owner: Sazukari, saved: SavedSession | None) -> None:
        self.resumed = False
        self._owner = owner
        self._to_resume = saved
        self._yami = ClientYami(owner.random_bytes, owner.max_message)
        self.established: Deferred[Session] = Deferred(lambda _: self.abort())
        self._standing = False
        self._lost: Failure | None = None
        self._requests: deque[tuple[bytes, Deferred[bytes]]] = deque()
        self._answer: Deferred[bytes] | None = None
        self._answer_key = -1
        self._key_wanted: Deferred[Any] | None = None
        self._closed: list[Deferred[None]] = []
        self.on_lost: Callable[[Session], None] | None = None

    # -- what the user does

    @property
    def saved(self) -> SavedSession:
        """What :meth:`Sazukari.resume` takes. A secret.

        :raises LocalProtocolError: before the session stands.
        """
        return self._yami.saved

    @property
    def alive(self) -> bool:
        """Whether requests can be sent. Not after the last one that the key may carry: resume the session then (K4)."""
        return self._lost is None and self._standing and not self._yami.spent

    @property
    def idle(self) -> bool:
        """Whether it is alive and waits for nothing."""
        return self.alive and self._answer is None and not self._requests

    @property
    def proven(self) -> bool:
        """Whether the server has shown that the session stands there too (K6)."""
        return self._yami.proven

    def send_message(self, request: bytes) -> Deferred[bytes]:
        """The server's answer to a request of 1 byte to 1 MiB.

        Fails with :class:`SessionLostError`, :class:`TimedOutError` or RemoteProtocolError; the session is over then.

        :raises LocalProtocolError: for an empty request, or one that is too long.
        """
        if not 0 < len(request) <= self._owner.max_message:
            raise LocalProtocolError(f"a request has 1 to {self._owner.max_message} bytes")
        if self._lost is not None:
            return fail(self._lost)
        if self._yami.spent and self._answer is None:
            return fail(SessionLostError(SPENT))
        done: Deferred[bytes] = Deferred(lambda _: self.abort())
        self._requests.append((request, done))
        self._send_next()
        return done

    def close(self) -> Deferred[None]:
        """End the connection; fires when it is gone. The session can be resumed."""
        if self._lost is not None:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._closed.append(done)
        self.transport.loseConnection()
        return done

    def abort(self) -> None:
        """End the connection at once."""
        if self.transport is not None and self._lost is None:
            self.transport.abortConnection()

    # -- what happens

    def connectionMade(self) -> None:
        """Begin: with a resumption if there is something to resume."""
        self.transport.setTcpNoDelay(True)
        if self._to_resume is not None:
            prompt.send(self.transport, self._yami.resume(self._to_resume))
        else:
            self._shake_hands()

    def _shake_hands(self) -> None:
        self._key_wanted = self._owner.keys.take()
        self._key_wanted.addCallbacks(self._send_syn, self._fail)

    def _send_syn(self, key: rsa_oaep.PrivateKey) -> None:
        self._key_wanted = None
        if self._lost is None:
            prompt.send(self.transport, self._yami.connect(self._owner.server_key, key))

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the server."""
        self._yami.feed(data)
        try:
            while self._lost is None and (event := self._yami.next_event()) is not None:
                self._act(event)
        except RemoteProtocolError:
            self._fail(Failure())

    def _act(self, event: Event) -> None:
        if isinstance(event, Response):
            answer, self._answer = self._answer, None
            self._owner.request_deadlines.cancel(self._answer_key)
            assert answer is not None
            answer.callback(event.plain)
            if self._yami.spent:
                self._end_spent()
            else:
                self._send_next()
        elif isinstance(event, Reply):
            prompt.send(self.transport, event.reply)
        elif isinstance(event, Rehandshake):
            self._shake_hands()
        elif isinstance(event, Established):
            self.resumed, self._standing = event.resumed, True
            if not self.established.called:
                self.established.callback(self)
            self._send_next()

    def _send_next(self) -> None:
        if self._answer is None and self._requests and self.alive:
            request, self._answer = self._requests.popleft()
            self._answer_key = self._owner.request_deadlines.start(self._too_late)
            prompt.send(self.transport, self._yami.send_message(request))

    def _end_spent(self) -> None:
        """The server closes after this response; a request that it never saw is better told so than lost."""
        waiting = [done for _, done in self._requests]
        self._requests.clear()
        self.transport.loseConnection()
        for done in waiting:
            done.errback(SessionLostError(SPENT))

    def _too_late(self) -> None:
        self._fail(Failure(TimedOutError("no answer in time")))

    def _fail(self, why: Failure) -> None:
        """The session is over: everything that waits learns why."""
        if self._lost is not None:
            return
        self._lost = why
        self._owner.request_deadlines.cancel(self._answer_key)
        self.transport.abortConnection()
        waiting = [self._answer, self.established, *(done for _, done in self._requests)]
        self._answer = None
        self._requests.clear()
        if self._key_wanted is not None:
            self._key_wanted.addErrback(lambda _: None).cancel()
        for each in waiting:
            if each is not None and not each.called:
                each.errback(why)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The server closed, or the network failed."""
        text = "the server closed the connection" if reason.check(error.ConnectionDone) else str(reason.value)
        self._fail(Failure(SessionLostError(" ".join(text.split()))))
        closed, self._closed = self._closed, []
        for done in closed:
            done.callback(None)
        if self.on_lost is not None:
            self.on_lost(self)


class _SessionFactory(Factory):
    """One connection."""

    noisy = False

    def __init__(self, owner: Sazukari, saved: SavedSession | None) -> None:
        self._owner = owner
        self._saved = saved

    def buildProtocol(self, addr: object) -> Session:
        """The session."""
        return Session(self._owner, self._saved)


class Sazukari:
    """A client of one server.

    :param endpoint: how to reach it. :param server_key: its key; there is no way to connect without one (K6).
    :param connect_time: seconds for connecting and shaking hands. :param request_time: seconds for an answer.
    """

    def __init__(
        self,
        reactor: Any,
        endpoint: IStreamClientEndpoint,
        server_key: rsa_oaep.PublicKey,
        *,
        connect_time: float = CONNECT_TIME,
        request_time: float = REQUEST_TIME,
        max_message: int = MAX_MESSAGE,
        keys: KeyStock | None = None,
        random_bytes: RandomBytes = os.urandom,
    ) -> None:
        self.server_key = server_key
        self.max_message = max_message
        self.random_bytes = random_bytes
        self.keys = keys or KeyStock(server_key.public_numbers().e)
        self.request_deadlines = Deadlines(reactor, request_time)
        self._reactor = reactor
        self._endpoint = endpoint
        self._connect_time = connect_time

    def connect(self) -> Deferred[Session]:
        """A new session by a full handshake.

        Fails with what the endpoint fails with, TimedOutError, SessionLostError, ServerRefusedError or another
        RemoteProtocolError.
        """
        return self._open(None)

    def resume(self, saved: SavedSession) -> Deferred[Session]:
        """The saved session on a new connection; a new session where the server will not resume it.

        A server that does not know the session says so, and there is a handshake on the same connection. One that has
        another key of it, or another key of its own, turns us away as it does anybody: then there is a handshake on
        another connection. Fails as :meth:`connect`.
        """

        async def resume_or_connect() -> Session:
            try:
                return await self._open(saved, min(self._connect_time, RESUME_TIME))
            except (SessionLostError, TimedOutError, RemoteProtocolError):
                return await self._open(None)

        return Deferred.fromCoroutine(resume_or_connect())

    def _open(self, saved: SavedSession | None, time: float | None = None) -> Deferred[Session]:
        seconds = self._connect_time if time is None else time

        async def open_session() -> Session:
            session = cast(Session, await self._endpoint.connect(_SessionFactory(self, saved)))
            return await session.established

        def timed_out(result: Any, seconds: float) -> Any:
            if isinstance(result, Failure):
                raise TimedOutError(
                    f"no session within {seconds:g} s: it does not answer, or the server's key here is not its key"
                )
            return result

        return Deferred.fromCoroutine(open_session()).addTimeout(seconds, self._reactor, timed_out)
