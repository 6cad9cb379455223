"""Plain HTTP at the client: ``http://host:port/path`` and ``https://``. Every request is answered at once.

For proxies that do not bear requests which stay open. The server's end is the site's (:mod:`mikanet.carriers.site`);
the rules are in :mod:`mikanet.carriers.http_asking`.
"""

from __future__ import annotations

import os

from mikanet.carriers.http_client import AskingClientCarrier, WebPlace
from mikanet.carriers.urls import CarrierContext, CarrierUrl
from mikanet.interfaces import IClientCarrier


def client(url: CarrierUrl, context: CarrierContext) -> IClientCarrier:
    """``http://host:port/path``, ``https://host:port/path?ca-file=FILE``."""
    return AskingClientCarrier(WebPlace.of(url, context), context, 0, 0, os.urandom)
