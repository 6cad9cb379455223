"""The kcptun commands' options."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mikanet.cli import kcptun_client, kcptun_server
from mikanet.cli.kcptun_common import KCPTUN_SMUX, KcptunOptions


class OptionsTests(SynchronousTestCase):
    """What is taken, and what is refused in one line."""

    def test_server(self) -> None:
        """Endpoint, target and smux version."""
        options = kcptun_server.Options()
        options.parseOptions(["--listen", "kcp:29900", "--target", "127.0.0.1:80", "--smux", "2"])
        self.assertIsInstance(options, KcptunOptions)
        self.assertEqual((str(options.target), options.smux.version), ("127.0.0.1:80", 2))

    def test_client(self) -> None:
        """smux version 1 with kcptun's frames and keepalive is the default."""
        options = kcptun_client.Options()
        options.parseOptions(["--server", "kcp:192.0.2.1:29900", "--forward", "tcp:12948"])
        self.assertEqual(options.smux, KCPTUN_SMUX)

    def test_mistakes(self) -> None:
        """Each mistake is one line that names what is wrong."""
        cases = [
            (kcptun_server, ["--target", "127.0.0.1:80"], "--listen"),
            (kcptun_server, ["--listen", "kcp:1", "--target", "nowhere"], "nowhere"),
            (kcptun_server, ["--listen", "kcp:1", "--target", "a:1", "--smux", "3"], "--smux"),
            (kcptun_client, ["--forward", "tcp:1"], "--server"),
            (kcptun_client, ["--server", "kcp:h:1"], "--forward"),
        ]
        for module, words, named in cases:
            ended = self.assertRaises(SystemExit, module.Options().parseOptions, words)
            self.assertIn(named, str(ended.code))
            self.assertNotIn("\n", str(ended.code))
