"""NitroSocks' carrier: TLS as a filter, over any byte stream (N11).

Works as Twisted's own TLS protocol does, on two memory buffers of pyOpenSSL, with three differences: all records of one
read are handed up together and all of one write are handed down together, each direction can end alone, and the protocol
above is connected at once, so that a server's clock for strangers runs from the first moment.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

from OpenSSL import SSL
from twisted.internet import error
from twisted.internet.interfaces import IProtocol
from twisted.python.failure import Failure

from mikanet import prompt
from mikanet.filters.base import Filter

#: Largest record's content, in bytes, and what one read may bring at most.
_RECORD = 16384
_RECORD_OVERHEAD = 64

#: Bytes that TLS itself may answer after the handshake, and one more for so many that came. A peer can ask for new keys with
#: every 27 bytes (RFC 8446 section 4.6.3) and leave the answers unread; honest ones do so once in gigabytes.
MAX_ANSWERS, ANSWER_SHARE = 64 * 1024, 1024


class TlsError(error.ConnectionLost):
    """TLS failed; the text says how."""

    def __init__(self, text: str) -> None:
        super().__init__(f"TLS: {text}")

    def __str__(self) -> str:
        return str(self.args[0])  # without Twisted's sentence about lost connections


class ISecured(Protocol):
    """What stands above."""

    def secured(self, connection: SSL.Connection) -> None:
        """The handshake is done."""


class TlsSide(Protocol):
    """How one side does TLS."""

    def connection(self) -> SSL.Connection:
        """A connection without a socket, in the state that the side asks for."""

    def verify(self, connection: SSL.Connection) -> None:
        """The handshake is done: is it with whom it should be?

        :raises TlsError: if not.
        """

    def explain(self, connection: SSL.Connection, text: str) -> str:
        """Why the handshake failed, in words that help, from OpenSSL's."""


class TlsFilter(Filter):
    """TLS. Lower side: byte stream. Upper side: byte stream, connected before the handshake; ``secured`` tells of it.

    :ivar said_goodbye: whether the peer ended its direction by TLS's own word.
    """

    __slots__ = ("_answers", "_ended", "_failure", "_secured", "_side", "connection", "said_goodbye")

    def __init__(self, upper: IProtocol, side: TlsSide) -> None:
        super().__init__(upper)
        self.connection = side.connection()
        self._side = side
        self._secured = False
        self._ended = False
        self._answers: float = MAX_ANSWERS
        self.said_goodbye = False
        self._failure: Failure | None = None

    def connectionMade(self) -> None:
        """Begin the handshake."""
        self.establish()
        if self.transport is not None and not self._ended:
            self._handshake()

    def _fail(self, reason: Failure) -> None:
        if self._failure is None:
            self._failure = reason
            self._flush()  # the alert
            if self.transport is not None:
                self.transport.loseConnection()

    def _handshake(self) -> bool:
        try:
            self.connection.do_handshake()
        except SSL.WantReadError:
            self._flush()
            return False
        except SSL.Error as problem:
            self._fail(Failure(TlsError(self._side.explain(self.connection, _words(problem)))))
            return False
        try:
            self._side.verify(self.connection)
        except TlsError as problem:
            self._fail(Failure(problem))
            return False
        self._flush()
        self._secured = True
        cast(ISecured, self.upper).secured(self.connection)
        return True

    def dataReceived(self, data: bytes) -> None:
        """Records, in whatever pieces."""
        if self._failure is not None or (self._ended and not self._secured):
            return  # what nobody will read is not kept either
        connection = self.connection
        connection.bio_write(data)
        if not self._secured and not self._handshake():
            return
        pieces: list[bytes] = []
        closed = False
        try:
            while True:
                pieces.append(connection.recv(_RECORD))
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            closed = True
        except SSL.Error as problem:
            self._fail(Failure(TlsError(_words(problem))))
        if pieces and self._connected:
            self.upper.dataReceived(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self.transport is not None:
            self._answers += len(data) / ANSWER_SHARE - self._flush()  # answers of TLS itself
            if self._answers < 0:
                self._fail(Failure(TlsError("the peer asks for too many answers")))
        if closed and self._connected:
            self.said_goodbye = True
            self.readConnectionLost()

    def write(self, data: bytes) -> None:
        """Bytes from above; the handshake must be done."""
        if self.transport is None or self._ended or not self._secured or not data:
            return
        try:
            self.connection.sendall(data)
        except SSL.Error as problem:
            self._fail(Failure(TlsError(_words(problem))))
        else:
            self._flush(len(data))

    def _flush(self, size: int = 0) -> int:
        """Send what TLS has made; ``size`` bytes of content are in it. How many bytes that were."""
        sent = 0
        if self.transport is None:
            return sent
        room = size + (size // _RECORD + 1) * _RECORD_OVERHEAD if size else _RECORD
        try:
            while True:
                data = self.connection.bio_read(room)
                prompt.send(self.transport, data)
                sent += len(data)
                if len(data) < room:
                    break
        except SSL.WantReadError:
            pass
        return sent

    def _end(self) -> None:
        """Our close_notify."""
        if not self._ended:
            self._ended = True
            if self._secured and self._failure is None:
                try:
                    self.connection.shutdown()
                except SSL.Error:
                    return
                self._flush()

    def loseConnection(self) -> None:
        """Say goodbye, and close."""
        self._end()
        super().loseConnection()

    def loseWriteConnection(self) -> None:
        """Say goodbye, and end our direction below; what still comes is read."""
        self._end()
        super().loseWriteConnection()

    def connectionLost(self, reason: Failure) -> None:
        """The lower transport is gone. If TLS failed before, that is the reason."""
        self._ended = True
        super().connectionLost(self._failure or reason)


def _words(problem: SSL.Error) -> str:
    """An SSL error in OpenSSL's words."""
    details: Any = problem.args[0] if problem.args else ()
    words = "; ".join(each[-1] for each in details if each) if isinstance(details, list) else str(problem)
    return words or type(problem).__name__
