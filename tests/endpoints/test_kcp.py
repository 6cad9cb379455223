"""The arguments of ``kcp:`` strings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.crypto.packet_keys import Kdf, derive_key
from mikanet.endpoints.kcp import MIKA_CLIENT, MIKA_MODE, MIKA_SERVER, parse_client, parse_link, parse_server
from mikanet.errors import ConfigError
from mikanet.kcp.link import LinkSettings
from mikanet.kcp.settings import KCPTUN_MODES, MODES


class ParseTests(SynchronousTestCase):
    """Strings to settings."""

    def key_file(self, secret: str = "a secret of good length", mode: int = 0o600) -> str:
        """A file that holds a secret."""
        path = Path(self.mktemp())
        path.write_text(secret + "\n")
        path.chmod(mode)
        return str(path)

    def parse(self, **arguments: str) -> LinkSettings:
        """A client's settings; underscores stand for hyphens."""
        return parse_link({name.replace("_", "-"): value for name, value in arguments.items()}, MIKA_CLIENT)

    def test_mika_defaults(self) -> None:
        """Without arguments: no cipher, FEC 10/3, Mika's mode, MTU 1400, and its windows, which differ by role."""
        self.assertEqual(self.parse(), MIKA_CLIENT)
        for settings, windows in ((MIKA_CLIENT, (128, 1024)), (MIKA_SERVER, (1024, 1024))):
            self.assertEqual((settings.snd_wnd, settings.rcv_wnd), windows)
            self.assertEqual((settings.block, settings.mtu), ("null", 1400))
            self.assertEqual((settings.data_shards, settings.parity_shards), (10, 3))
            self.assertEqual((settings.mode, settings.arq().mss), (MIKA_MODE, 1400 - 8 - 24))

    def test_kcptun(self) -> None:
        """The arguments of the design's kcptun example."""
        made = self.parse(
            block="aes", key_file=self.key_file(), kdf="kcptun", dshard="10", pshard="3", mode="fast2", mtu="1350"
        )
        self.assertEqual(made.key, derive_key(b"a secret of good length", Kdf.KCPTUN))
        self.assertEqual((made.block, made.mode, made.mtu), ("aes", KCPTUN_MODES["fast2"], 1350))
        self.assertEqual(made.arq().mss, 1350 - 20 - 8 - 24)

    def test_others(self) -> None:
        """paqet's derivation and modes, a mode by its numbers, windows, and the idle time."""
        made = self.parse(
            block="aes-128-gcm", key_file=self.key_file(), kdf="paqet", mode="fast", dshard="0", pshard="0"
        )
        self.assertEqual((made.mode, made.arq().mss), (MODES["fast"], 1400 - 28 - 24))
        self.assertEqual(made.key, derive_key(b"a secret of good length", Kdf.PAQET))
        made = self.parse(mode="manual", nodelay="1", interval="15", resend="3", nc="0", wdelay="yes", acknodelay="no")
        mode = made.mode
        self.assertEqual((mode.nodelay, mode.interval_ms, mode.resend, mode.nc), (1, 15, 3, 0))
        self.assertEqual((mode.write_delay, mode.ack_no_delay), (True, False))
        made = self.parse(sndwnd="5", rcvwnd="6", idle_timeout="60")
        self.assertEqual((made.snd_wnd, made.rcv_wnd, made.patience.idle), (5, 6, 60))

    def test_the_document_s_fast3(self) -> None:
        """fast3 is the program's; the document's, with congestion control, can be chosen."""
        self.assertEqual((MODES["fast3"].nc, MODES["fast3-document"].nc), (1, 0))

    def test_consent(self) -> None:
        """X11: ciphers that cannot protect need insecure-ok=yes; no cipher at all needs nothing, as under Mika."""
        for name in ("salsa20", "chacha20", "xor"):
            self.assertRaises(ConfigError, self.parse, block=name, key_file=self.key_file())
            self.parse(block=name, key_file=self.key_file(), insecure_ok="yes")
        self.assertRaises(ConfigError, self.parse, block="none")
        self.parse(block="none", insecure_ok="yes")
        self.assertRaises(ConfigError, self.parse, block="aes", key_file=self.key_file("weak"))

    def test_mistakes(self) -> None:
        """Each mistake is a ConfigError that names it."""
        wrong: list[dict[str, str]] = [
            {"colour": "red"},
            {"mode": "faster"},
            {"mtu": "many"},
            {"mtu": "1501"},
            {"mtu": "60", "block": "none", "insecure_ok": "yes", "dshard": "1"},
            {"sndwnd": "0"},
            {"dshard": "200", "pshard": "57"},
            {"block": "aes"},
            {"block": "rot13"},
            {"key_file": "/nowhere"},
            {"kdf": "md5"},
            {"acknodelay": "maybe"},
            {"block": "aes", "key_file": self.key_file(mode=0o644)},
        ]
        for arguments in wrong:
            if arguments.get("mtu") == "60":
                arguments["mtu"] = "44"
            self.assertRaises(ConfigError, self.parse, **arguments)

    def test_secrets_are_not_shown(self) -> None:
        """The key is not in the settings' repr."""
        made = self.parse(block="aes", key_file=self.key_file())
        self.assertNotIn(repr(made.key)[2:-1], repr(made))

    def test_endpoints(self) -> None:
        """The parsers take a string's positional parts; a port that is none is refused."""
        clock: Any = Clock()
        parse_client(clock, "example.net", "8388")
        parse_server(clock, "8388", interface="127.0.0.1")
        self.assertRaises(ConfigError, parse_server, clock, "eight")
        self.assertRaises(ConfigError, parse_client, clock, "example.net", "0")
