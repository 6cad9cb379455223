"""Tests of Pickaxe's command lines, its endpoint string and ``mikanet passwd``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

from twisted.internet.endpoints import clientFromString
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.cli import passwd
from mikanet.endpoints.pickaxe import parse_client
from mikanet.errors import ConfigError
from mikanet.pickaxe import tap_client, tap_server
from mikanet.pickaxe.keys import Kdf, Secret
from mikanet.pickaxe.login import Throttle
from mikanet.pickaxe.policy import Policy
from mikanet.pickaxe.service import CarrierService, make_server
from mikanet.pickaxe.users import format_user

PASSWORD = "correct enough for a test"


class TapTestCase(SynchronousTestCase):
    """A folder with a password and a users file."""

    def setUp(self) -> None:
        """Make it."""
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.password = self.private("password", PASSWORD)
        self.users = self.private("users", format_user("alice", Secret(Kdf.MIKANET, bytes(32))))

    def private(self, name: str, text: str) -> str:
        """A private file."""
        file = self.folder / name
        file.touch(0o600)
        file.write_text(text + "\n")
        return str(file)

    def parse(self, options: Any, *words: str) -> Any:
        """A command line that is good."""
        options.parseOptions(words)
        return options

    def mistake(self, options: Any, *words: str) -> str:
        """The one line that a bad one gives."""
        with self.assertRaises(SystemExit) as caught:
            options.parseOptions(words)
        text = str(caught.exception)
        self.assertNotIn("\n", text)
        return text


class ServerTests(TapTestCase):
    """pickaxe-server."""

    def words(self, *more: str) -> tuple[str, ...]:
        """A command line."""
        return ("--users", self.users, "--carrier", "tcp://127.0.0.1:8865", "--state-dir", str(self.folder), *more)

    def test_good(self) -> None:
        """Everything is read and kept."""
        options = self.parse(
            tap_server.Options(),
            *self.words("--allow-listen", "8000-8010", "--listen-address", "192.0.2.1", "--throttle", "name"),
        )
        config = options.settings.config
        self.assertEqual(config.listen.ranges, ((8000, 8010),))
        self.assertEqual((config.listen.address, config.throttle), ("192.0.2.1", Throttle.NAME))
        self.assertIsNotNone(config.users("alice"))
        self.assertIsNone(config.users("bob"))
        self.assertEqual([carrier.name for carrier in options.settings.carriers], ["tcp://127.0.0.1:8865"])

    def test_service(self) -> None:
        """The service opens its carriers before privileges are dropped, and ends its sessions at the end."""
        reactor: Any = MemoryReactorClock()
        options = self.parse(tap_server.Options(), *self.words("--drain-time", "0"))
        service = make_server(reactor, options.settings)
        self.assertEqual(sum(isinstance(child, CarrierService) for child in service), 1)

    def test_mistakes(self) -> None:
        """Each is one line that names the option."""
        for more, text in (
            (("--allow-listen", "x"), "--allow-listen"),
            (("--listen-address", "localhost"), "--listen-address"),
            (("--decoy", str(self.folder / "none")), "--decoy"),
            (("--throttle", "user"), "--throttle"),
            (("--login-response", "short"), "--login-response"),
            (("--kdf", "md5"), "--kdf"),
            (("--kdf", "draft"), "has no user"),
            (("--keep-session", "1"), "--keep-session"),
            (("--carrier", "ftp://x"), "ftp"),
        ):
            self.assertIn(text, self.mistake(tap_server.Options(), *self.words(*more)))
        self.assertIn("--carrier", self.mistake(tap_server.Options(), "--users", self.users))
        self.assertIn("--users", self.mistake(tap_server.Options(), "--carrier", "tcp://127.0.0.1:8865"))
        os.chmod(self.users, 0o644)
        self.assertIn("chmod 600", self.mistake(tap_server.Options(), *self.words()))


class ClientTests(TapTestCase):
    """pickaxe-client."""

    def words(self, *more: str) -> tuple[str, ...]:
        """A command line without a door."""
        return self.with_password(self.password, *more)

    def with_password(self, file: str, *more: str) -> tuple[str, ...]:
        """The same with another password."""
        return ("--user", "alice", "--password-file", file, "--carrier", "tcp://127.0.0.1:8865", *more)

    def test_good(self) -> None:
        """Everything is read and kept; a forward from the server is door enough."""
        options = self.parse(
            tap_client.Options(),
            *self.words("--policy", "race", "--remote-forward", "0=127.0.0.1:22", "--carrier", "tcp://[::1]"),
        )
        self.assertEqual(options.config.policy, Policy.RACE)
        self.assertEqual([carrier.name for carrier in options.carriers], ["tcp://127.0.0.1:8865", "tcp://[::1]"])
        ((port, destination),) = options.config.remote_forwards
        self.assertEqual((port, str(destination)), (0, "127.0.0.1:22"))
        self.assertNotIn(PASSWORD, repr(options.config))
        service = tap_client.makeService(options, MemoryReactorClock())
        self.assertTrue(service)

    def test_weak_secrets(self) -> None:
        """A weak key for knocking is refused unless that is asked for; a proxy's password is as its owner made it."""
        weak = self.private("weak", "secret")
        knock = ("--socks", "tcp:1080", "--carrier", f"http://192.0.2.1/t?key-file={weak}")
        self.assertIn("too easy to guess", self.mistake(tap_client.Options(), *self.words(*knock)))
        self.parse(tap_client.Options(), *self.words(*knock, "--insecure-ok"))
        proxy = f"connect://me@192.0.2.1/192.0.2.2:443?password-file={weak}"
        self.parse(tap_client.Options(), *self.words("--socks", "tcp:1080", "--carrier", proxy))

    def test_mistakes(self) -> None:
        """Each is one line that names the option."""
        socks = ("--socks", "tcp:1080")
        for more, text in (
            ((), "no front door"),
            ((*socks, "--policy", "best"), "--policy"),
            ((*socks, "--names", "dns"), "--names"),
            ((*socks, "--kdf", "md5"), "--kdf"),
            ((*socks, "--remote-forward", "80"), "--remote-forward"),
            ((*socks, "--remote-forward", "x=host:1"), "--remote-forward"),
            ((*socks, "--forward-udp", "127.0.0.1:53=192.0.2.1:53"), "--forward-udp"),
            ((*socks, "--user", ""), "--user"),
            ((*socks, "--user", "a\nb"), "--user"),
        ):
            self.assertIn(text, self.mistake(tap_client.Options(), *self.words(*more)))
        weak = self.private("weak", "short")
        self.assertIn("easy to guess", self.mistake(tap_client.Options(), *self.with_password(weak, *socks)))


class EndpointTests(TapTestCase):
    """``pickaxe:``."""

    def test_one_session_for_equal_strings(self) -> None:
        """Strings with the same user, password, carriers and ways share a client."""
        import twisted.internet.reactor as reactor

        base = rf"user=alice:password-file={self.password}:carrier=tcp\://192.0.2.1\:8865"
        first = clientFromString(reactor, f"pickaxe:example.com:80:{base}")
        second = clientFromString(reactor, f"pickaxe:example.net:443:{base}")
        third = clientFromString(reactor, f"pickaxe:example.net:443:{base}:policy=race")
        self.assertIs(first._tunnel, second._tunnel)  # type: ignore[attr-defined]  # what is shared
        self.assertIsNot(first._tunnel, third._tunnel)  # type: ignore[attr-defined]

    def test_mistakes(self) -> None:
        """Missing, wrong and unknown arguments."""
        reactor: Any = MemoryReactorClock()
        good = {"user": "alice", "password-file": self.password}
        for more in ({"user": ""}, {"policy": "best"}, {"names": "x"}, {"kdf": "x"}, {"colour": "red"}):
            with self.assertRaises(ConfigError):
                parse_client(reactor, "host", "80", "tcp://192.0.2.1:8865", **{**good, **more})
        for bad in ({"user": "alice"}, {"password-file": self.password}):
            with self.assertRaises(ConfigError):
                parse_client(reactor, "host", "80", "tcp://192.0.2.1:8865", **bad)


class PasswdTests(TapTestCase):
    """``mikanet passwd``."""

    def test_line(self) -> None:
        """The line lets in whoever has the password; the name may stand before or behind the options."""
        for words in (("zoë", "--password-file", self.password), ("--password-file", self.password, "zoë")):
            options = self.parse(passwd.Options(), *words)
            printed: list[str] = []
            with patch("builtins.print", printed.append):
                self.assertEqual(passwd.run(options), 0)
            expected = Secret.of_password(Kdf.MIKANET, "zoë", PASSWORD.encode())
            self.assertEqual(printed, [f"zoë:mikanet:{expected.value.hex()}"])

    def test_mistakes(self) -> None:
        """One line each."""
        for words, text in (
            ((), "whose line"),
            (("a", "b"), "whose line"),
            (("a",), "--password-file"),
            (("a", "--password-file", self.password, "--kdf", "md5"), "--kdf"),
        ):
            self.assertIn(text, self.mistake(passwd.Options(), *words))
        options = self.parse(passwd.Options(), "a:b", "--password-file", self.password, "--kdf", "draft")
        with self.assertRaises(SystemExit) as caught:
            passwd.run(options)
        self.assertIn("colon", str(caught.exception))
