"""Ground floor: every exception that mikanet raises on purpose. No I/O.

Sessions and codecs raise; the Twisted class that feeds one is the one place that catches, logs once and closes.
"""

from __future__ import annotations

import enum

from twisted.internet import error


class MikanetError(Exception):
    """Base of all errors of this package. Never raised itself."""


class ConfigError(MikanetError):
    """The user asked for something that cannot be done. The text is one line: what is wrong, and what to do."""


class ProtocolError(MikanetError):
    """Base of what can go wrong on a wire. Never raised itself."""


class LocalProtocolError(ProtocolError):
    """Our own side used a codec or session against its rules."""


class RemoteProtocolError(ProtocolError):
    """The peer sent bytes that its protocol does not allow."""


class AuthenticationError(RemoteProtocolError):
    """The peer did not prove what it had to prove: a wrong tag, an old time, a replay."""


class Reason(enum.Enum):
    """Why a destination could not be reached; front doors turn it into their own protocol's reply."""

    FAILURE = "failure"
    POLICY = "refused by policy"
    NETWORK_UNREACHABLE = "network unreachable"
    HOST_UNREACHABLE = "host unreachable"
    REFUSED = "connection refused"
    TIMEOUT = "timed out"
    UNSUPPORTED = "not supported"
    LIMIT = "limit reached"


class DestinationError(MikanetError):
    """A destination could not be reached.

    :ivar reason: the cause, as a :class:`Reason`.
    """

    def __init__(self, reason: Reason, text: str = "") -> None:
        super().__init__(text or reason.value)
        self.reason = reason


class ServerError(DestinationError):
    """The tunnel's own server is the obstacle, not the destination. The text is for the user: what is wrong, what to do."""


def reason_of(exception: BaseException | None) -> Reason:
    """The :class:`Reason` behind an exception that a failed ``connect`` brought, ours or Twisted's."""
    if isinstance(exception, DestinationError):
        return exception.reason
    for kinds, reason in _TWISTED_REASONS:
        if isinstance(exception, kinds):
            return reason
    return Reason.FAILURE


# Order matters: TimeoutError and the others are all ConnectError.
_TWISTED_REASONS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], Reason], ...] = (
    (error.ConnectionRefusedError, Reason.REFUSED),
    (error.TCPTimedOutError, Reason.TIMEOUT),
    (error.TimeoutError, Reason.TIMEOUT),
    (error.NoRouteError, Reason.NETWORK_UNREACHABLE),
    ((error.DNSLookupError, error.UnknownHostError), Reason.HOST_UNREACHABLE),
)
