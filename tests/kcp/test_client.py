"""The client's end of a link."""

from __future__ import annotations

from dataclasses import replace

from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase

from mikanet.kcp.client import KcpClientSession
from mikanet.kcp.link import LinkSettings
from tests.filters.contract import Upper
from tests.kcp.net import Net
from tests.kcp.test_reach import LINK, Echo


class ClientTests(SynchronousTestCase):
    """Over the link in memory."""

    def test_other_conversations_are_ignored(self) -> None:
        """Good packets of another conversation, and rubbish, do not reach the session."""
        self.strangers(LINK)

    def test_other_conversations_with_fec(self) -> None:
        """The same where packets have FEC headers."""
        self.strangers(replace(LINK, data_shards=2, parity_shards=1))

    def strangers(self, settings: LinkSettings) -> None:
        """One client is given another's packets."""
        net = Net(settings, Factory.forProtocol(Echo))
        uppers = [Upper(), Upper()]
        first, second = (net.client(upper, settings) for upper in uppers)
        self.assertIsInstance(first, KcpClientSession)
        first.kcp.write(b"mine")
        net.server_port.keep = True
        net.clock.run(lambda: uppers[0].received == [b"mine"], 10)
        second.packets_received([*net.server_port.sent, b"rubbish" * 9])
        net.clock.sleep(0.1)
        self.assertEqual((uppers[1].received, second.kcp.refused), ([], 0))
