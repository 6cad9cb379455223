"""NitroSocks' two state machines as tables: which packet may come in which state, what it does, and what follows.

What is not in a table is fatal for the connection. :mod:`mikanet.nitrosocks.server_link` and
:mod:`mikanet.nitrosocks.client_link` hold a method for each action. The states have the names of the phases in the
protocol document. Plain Python.
"""

from __future__ import annotations

import enum
from typing import Final

from mikanet.nitrosocks.wire import Type


class Inner(enum.Enum):
    """Inputs that are no packet types."""

    #: A packet that cannot be verified, in a state where the peer may not be proven yet.
    UNVERIFIABLE = "unverifiable"
    #: The first packet under the key of the last REFRESH verified.
    NEW_PHASE = "new phase"


class ServerState(enum.Enum):
    """Where one connection stands at the server."""

    #: TLS stands; the challenge has not left.
    GREETING = "greeting"
    #: The challenge has left; the client proves itself, or asks for its session back.
    CHALLENGED = "challenged"
    #: Covert encrypted communication.
    OPEN = "open"
    #: The same, with a new key that the client has not used yet.
    REFRESHING = "refreshing"
    #: DISCONNECT was acknowledged; its confirmation is awaited.
    CLOSING = "closing"
    CLOSED = "closed"


class ClientState(enum.Enum):
    """Where one connection stands at the client."""

    #: TLS stands; the challenge is awaited.
    WAITING = "waiting"
    #: The same, with a session to be resumed.
    RETURNING = "returning"
    #: The response has left; the session is awaited.
    ANSWERED = "answered"
    #: The reconnection packet has left; the recovery is awaited.
    RECONNECTING = "reconnecting"
    #: Covert encrypted communication.
    OPEN = "open"
    #: DISCONNECT has left; its acknowledgement is awaited.
    CLOSING = "closing"
    CLOSED = "closed"


_S, _C, _T = ServerState, ClientState, Type

ServerTable = dict[tuple[ServerState, Type | Inner], tuple[str, ServerState]]
ClientTable = dict[tuple[ClientState, Type | Inner], tuple[str, ClientState]]

#: (state, input) -> (action, next state) at the server.
SERVER_TABLE: Final[ServerTable] = {
    # Phase 2: one packet that means nothing may come; it brings the challenge forward.
    (_S.GREETING, Inner.UNVERIFIABLE): ("confused_early", _S.CHALLENGED),
    (_S.CHALLENGED, Inner.UNVERIFIABLE): ("confused", _S.CHALLENGED),
    # Phases 3 and 4, and 5.2.
    (_S.CHALLENGED, _T.RESPONSE): ("establish_session", _S.OPEN),
    (_S.CHALLENGED, _T.RECONNECT): ("recover_session", _S.OPEN),
    # Phase 5.
    (_S.OPEN, _T.DATA): ("deliver", _S.OPEN),
    (_S.OPEN, _T.HEARTBEAT): ("answer_heartbeat", _S.OPEN),
    (_S.OPEN, _T.DISCONNECT): ("acknowledge_disconnect", _S.CLOSING),
    # Phase 5.1: packets under the old key are still on their way.
    (_S.REFRESHING, _T.DATA): ("deliver", _S.REFRESHING),
    (_S.REFRESHING, _T.HEARTBEAT): ("answer_heartbeat", _S.REFRESHING),
    (_S.REFRESHING, _T.DISCONNECT): ("acknowledge_disconnect", _S.CLOSING),
    (_S.REFRESHING, Inner.NEW_PHASE): ("finish_refresh", _S.OPEN),
    # Phase 6.
    (_S.CLOSING, _T.CONFIRM): ("finish_release", _S.CLOSED),
    (_S.CLOSING, Inner.NEW_PHASE): ("finish_refresh", _S.CLOSING),
}

#: (state, input) -> (action, next state) at the client.
CLIENT_TABLE: Final[ClientTable] = {
    # Phases 2 and 3.
    (_C.WAITING, _T.CHALLENGE): ("respond", _C.ANSWERED),
    (_C.RETURNING, _T.CHALLENGE): ("reconnect", _C.RECONNECTING),
    # Phase 4, and 5.2.
    (_C.ANSWERED, _T.SESSION): ("begin_session", _C.OPEN),
    (_C.RECONNECTING, _T.RECOVERY): ("resume_session", _C.OPEN),
    # Phase 5, 5.1 and 6.2.
    (_C.OPEN, _T.DATA): ("deliver", _C.OPEN),
    (_C.OPEN, _T.HEARTBEAT_REPLY): ("check_heartbeat", _C.OPEN),
    (_C.OPEN, _T.REFRESH): ("refresh", _C.OPEN),
    (_C.OPEN, _T.DISCONNECT): ("obey_disconnect", _C.CLOSED),
    # Phase 6: what the server sent before it knew is still on its way.
    (_C.CLOSING, _T.DATA): ("ignore", _C.CLOSING),
    (_C.CLOSING, _T.HEARTBEAT_REPLY): ("check_heartbeat", _C.CLOSING),
    (_C.CLOSING, _T.REFRESH): ("refresh_quietly", _C.CLOSING),
    (_C.CLOSING, _T.DISCONNECT): ("obey_disconnect", _C.CLOSED),
    (_C.CLOSING, _T.DISCONNECT_ACK): ("confirm_release", _C.CLOSED),
}
