"""Where an HTTP forward without an address goes: the authority of its first request (M7). Plain Python over h11."""

from __future__ import annotations

from urllib.parse import urlsplit

import h11

from mikanet.address import Address, parse_address
from mikanet.errors import ConfigError, RemoteProtocolError


class HttpTarget:
    """Reads a request head only far enough to know its target; h11 bounds the head at 16 KiB."""

    def __init__(self) -> None:
        self._connection = h11.Connection(h11.SERVER)

    def feed(self, data: bytes) -> Address | None:
        """The target, as soon as the head is there.

        :raises RemoteProtocolError: if this is no HTTP request, or none that names a target.
        """
        try:
            self._connection.receive_data(data)
            event = self._connection.next_event()
        except h11.RemoteProtocolError as error:
            raise RemoteProtocolError("not an HTTP request") from error
        if event is h11.NEED_DATA:
            return None
        if not isinstance(event, h11.Request) or event.method == b"CONNECT":
            raise RemoteProtocolError("not a request that can be forwarded")
        return _target_of(event)


def _target_of(request: h11.Request) -> Address:
    # RFC 9112 section 3.2.2: the authority of an absolute target goes before the Host field.
    try:
        if request.target.lower().startswith(b"http://"):
            authority = urlsplit(request.target.decode("ascii", "replace")).netloc.rpartition("@")[2]
        else:
            authority = next((value.decode("ascii") for name, value in request.headers if name == b"host"), "")
        has_port = not authority.endswith("]") and ":" in authority
        return parse_address(authority if has_port else f"{authority}:80")
    except (ConfigError, ValueError) as error:  # urlsplit and decode say ValueError
        raise RemoteProtocolError("no target in the request") from error
