"""Refusal: the one way in which a server turns a peer away that proved nothing (X2).

A prober learns from differences: how many bytes were read before the close, whether the close was a FIN or a reset, how
long it took. So every failure looks the same. What arrives is read and thrown away without a limit, at a steady pace;
nothing is answered; at a fixed time after the connection was accepted the server sends a FIN. A peer that closes early
does not change that time.
"""

from __future__ import annotations

from typing import cast

from twisted.internet.interfaces import IPushProducer, IReactorTime, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from mikanet.guard.deadlines import Deadlines

#: How fast refused input is read, in bytes per second.
PACE = 65536

#: How long, in seconds, input is still read after our FIN, so that a slow FIN is not overtaken by a reset.
LINGER = 5.0

#: The same for a connection that is not let in at all (X3), and how many of those may linger at a time.
TURN_AWAY_LINGER = 0.5
MAX_TURNED_AWAY = 512


class Refusals:
    """The refusals of one server.

    :param clock: the reactor's time.
    :param refusal_time: seconds from accept (or from a failure after proof) to our FIN.
    """

    def __init__(self, clock: IReactorTime, refusal_time: float) -> None:
        self.clock = clock
        #: From accept to the FIN; every connection starts one.
        self.deadlines = Deadlines(clock, refusal_time)
        self.lingering = Deadlines(clock, LINGER)
        self._turned_away = Deadlines(clock, TURN_AWAY_LINGER)

    def turn_away(self) -> Protocol | None:
        """A protocol for a connection that may not come in: a FIN at once, whatever the peer has sent already (X3).

        None when too many of those are still lingering; the reactor then just closes, with a reset if there are unread
        bytes.
        """
        return TurnedAway(self._turned_away) if len(self._turned_away) < MAX_TURNED_AWAY else None


class TurnedAway(Protocol):
    """Sends a FIN, drops what comes, and closes soon: closing over unread bytes would be a reset."""

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._key = -1

    def connectionMade(self) -> None:
        """Send the FIN."""
        transport = cast(ITCPTransport, self.transport)
        if hasattr(transport, "loseWriteConnection"):
            transport.loseWriteConnection()
            self._key = self._deadlines.start(transport.loseConnection)
        else:
            transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The peer went first, or the time was over."""
        self._deadlines.cancel(self._key)


class Refusal:
    """One connection that is being turned away. The protocol hands it everything that still arrives.

    :param transport: the connection; nothing has been written to it.
    """

    __slots__ = ("_owed", "_read_over", "_refusals", "_timer", "_transport", "ended")

    def __init__(self, refusals: Refusals, transport: ITCPTransport) -> None:
        self._refusals = refusals
        self._transport: ITCPTransport | None = transport
        self._owed = 0
        self._timer: int | None = None
        self._read_over = False
        self.ended = False

    def data_received(self, size: int) -> None:
        """``size`` bytes came in and are thrown away; reading pauses for as long as they cost at the steady pace."""
        transport = self._transport
        if transport is None or self.ended:
            return
        self._owed += size
        if self._owed < PACE // 4:
            return
        producer = cast(IPushProducer, transport)
        producer.pauseProducing()
        self._refusals.clock.callLater(self._owed / PACE, self._resume)
        self._owed = 0

    def _resume(self) -> None:
        if self._transport is not None:
            cast(IPushProducer, self._transport).resumeProducing()

    def end(self) -> None:
        """The time has come: send the FIN, read what is left, and let go."""
        transport = self._transport
        if transport is None or self.ended:
            return
        self.ended = True
        if hasattr(transport, "loseWriteConnection"):
            transport.loseWriteConnection()
            # Reading again would meet an end that has come already before it meets our FIN, which then leaves a turn of
            # the reactor later: a tenth of a millisecond, but enough to tell early ends from others.
            if not self._read_over:
                self._resume()
            self._timer = self._refusals.lingering.start(transport.loseConnection)
        else:
            transport.loseConnection()

    def read_ended(self) -> None:
        """The peer sends no more. Our own end stays where it was, but after it there is nothing to wait for."""
        self._read_over = True
        if self.ended and self._transport is not None:
            self._transport.loseConnection()

    def lost(self) -> None:
        """The connection is gone."""
        self._transport = None
        if self._timer is not None:
            self._refusals.lingering.cancel(self._timer)
