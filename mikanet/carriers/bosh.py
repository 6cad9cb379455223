"""BOSH at the client: ``bosh://host:port/path``, ``boshs://`` over TLS. Requests are held until something comes.

The server's end is the site's (:mod:`mikanet.carriers.site`); the rules are in :mod:`mikanet.carriers.http_asking`.
"""

from __future__ import annotations

import os

from mikanet.carriers.http_client import AskingClientCarrier, WebPlace
from mikanet.carriers.urls import CarrierContext, CarrierUrl
from mikanet.interfaces import IClientCarrier

#: Requests kept open, so that the next thing to come finds one while the answer to the last is on its way.
HOLD = 2

#: Seconds for which they are: well below the 60 after which proxies give up.
WAIT = 25


def client(url: CarrierUrl, context: CarrierContext) -> IClientCarrier:
    """``bosh://host:port/path``, ``boshs://host:port/path?ca-file=FILE``."""
    return AskingClientCarrier(WebPlace.of(url, context), context, HOLD, WAIT, os.urandom)
