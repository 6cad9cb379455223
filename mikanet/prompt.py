"""Prompt writes: hand bytes and ends to the kernel at once instead of in the reactor's next turn.

Twisted's TCP transports keep what is written until the reactor says that the socket is writable, which costs a turn, two
changes of the poll set and a copy for each write, though the socket is almost always writable. :func:`send` tries the
socket first and leaves to the transport only what does not fit, so order, back-pressure and ends stay the transport's;
:func:`end_writing` and :func:`close` do the same for ends, :func:`receive` for what a client says first. A transport that is
not a plain TCP socket, or has something to send already, gets an ordinary ``write``, ``loseWriteConnection`` or
``loseConnection``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet import tcp
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

# Exactly these: a subclass may give write() another meaning.
_PLAIN = frozenset({tcp.Server, tcp.Client})

#: Pieces that one call hands to the kernel, well below its IOV_MAX of 1024.
_MOST_PIECES = 512


def is_plain(transport: Any) -> bool:
    """Whether the transport is a TCP socket with nothing in between."""
    return type(transport) in _PLAIN and not transport.TLS


def _idle(transport: Any) -> bool:
    """Whether the transport is a plain socket, open for writing, with nothing left to send."""
    return (
        type(transport) in _PLAIN
        and not transport.dataBuffer
        # A private name: should it ever change, every write is an ordinary one.
        and not getattr(transport, "_tempDataLen", True)
        and transport.connected
        and not transport.TLS
        and not transport.disconnecting
        and not transport._aborting
        and not transport._writeDisconnecting
    )


def send(transport: Any, data: bytes) -> None:
    """Write ``data`` to ``transport``, at once if that is possible."""
    if _idle(transport):
        sent = transport.writeSomeData(data)
        if sent == len(data):
            return
        if isinstance(sent, int):
            data = data[sent:]
        else:
            _remember_loss(transport)
    transport.write(data)


def _remember_loss(transport: Any) -> None:
    """Let the reactor report as lost a connection whose socket has just said so.

    Linux reports a reset once, to whatever call comes first. A read after that gives what had arrived before, and then
    the end of the stream as if it were a FIN: so that end, when it comes, is the loss.
    """
    transport.readConnectionLost = lambda _: transport.connectionLost(Failure(CONNECTION_LOST))


def receive(transport: Any) -> None:
    """From connectionMade: take what has come already, as it has when a client speaks first, without another turn."""
    if is_plain(transport):
        try:
            data = transport.socket.recv(transport.bufferSize)
        except BlockingIOError:
            return  # nothing yet
        except OSError:
            _remember_loss(transport)
            return
        if data:
            transport.protocol.dataReceived(data)


def close(transport: Any) -> None:
    """From readConnectionLost: end the connection, at once if nothing is left to send."""
    if _idle(transport) and transport.producer is None:
        transport._shouldShutdown = False  # the close sends our end
        transport.connectionLost(connectionDone)
    else:
        transport.loseConnection()


def send_all(transport: Any, pieces: Sequence[bytes]) -> None:
    """Write several pieces as one run of bytes, without joining them first if the socket takes them at once."""
    if not _idle(transport):
        transport.write(b"".join(pieces))
        return
    sent = 0
    try:
        sent = transport.socket.sendmsg(pieces[:_MOST_PIECES])
    except BlockingIOError:
        pass  # full
    except OSError:
        _remember_loss(transport)
    for index, piece in enumerate(pieces):
        if sent < len(piece):
            transport.write(b"".join([piece[sent:], *pieces[index + 1 :]]))
            return
        sent -= len(piece)


def end_writing(transport: Any) -> None:
    """End our direction, at once if nothing is left to send. No producer may be registered."""
    if _idle(transport):
        # What doWrite() does when it has sent the last byte.
        transport._writeDisconnecting = transport._writeDisconnected = True
        transport._shouldShutdown = False  # the close needs no second one
        transport._closeWriteConnection()
    elif type(transport) not in _PLAIN or transport.connected:  # Twisted's own raises on a lost connection
        transport.loseWriteConnection()
