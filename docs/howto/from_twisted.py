"""Fetch a page through a Mika server: python from_twisted.py SERVER-ENDPOINT PASSWORD-FILE URL"""

import sys

from treq.client import HTTPClient
from twisted.internet.endpoints import clientFromString, wrapClientTLS
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.task import react
from twisted.web.client import Agent
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from mikanet.endpoints import quote


@implementer(IAgentEndpointFactory)
class ThroughMika:
    """Gives Twisted's HTTP client an endpoint through the tunnel for every URL."""

    def __init__(self, reactor, server, password_file):
        self._reactor = reactor
        self._options = f"server={quote(server)}:password-file={quote(password_file)}"

    def endpointForURI(self, uri):
        host = uri.host.decode("ascii")
        endpoint = clientFromString(self._reactor, f"mika:{quote(host)}:{uri.port}:{self._options}")
        if uri.scheme == b"https":
            endpoint = wrapClientTLS(optionsForClientTLS(host), endpoint)
        return endpoint


async def main(reactor, server, password_file, url):
    agent = Agent.usingEndpointFactory(reactor, ThroughMika(reactor, server, password_file))
    response = await HTTPClient(agent).get(url)
    sys.stdout.buffer.write(await response.content())


if __name__ == "__main__":
    react(main, sys.argv[1:])
