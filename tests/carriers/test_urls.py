"""Tests of mikanet.carriers.urls."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.carriers.urls import SCHEMES, SERVER_SCHEMES, CarrierUrl, client_carrier, server_carrier, shown
from mikanet.errors import ConfigError
from tests.carriers.webs import context


class ParseTests(SynchronousTestCase):
    """URLs in their parts."""

    def test_all_parts(self) -> None:
        """Scheme, user, host, port, path and options."""
        url = CarrierUrl.parse("Connect://m%65@[2001:DB8::1]:3128/host:1?password-file=a%20b&empty=")
        self.assertEqual(
            (url.scheme, url.user, url.host, url.port, url.path), ("connect", "me", "2001:db8::1", 3128, "/host:1")
        )
        self.assertEqual(url.options, {"password-file": "a b", "empty": ""})
        bare = CarrierUrl.parse("tcp://host")
        self.assertEqual((bare.port, bare.path, bare.user, bare.options), (None, "", None, {}))

    def test_mistakes(self) -> None:
        """What is no URL, and a password that would stand on a command line."""
        for text in ("", "host:80", "tcp:host", "tcp://", "tcp://host:port", "tcp://host:70000", "tcp://[::1", "://x"):
            with self.assertRaises(ConfigError):
                CarrierUrl.parse(text)
        with self.assertRaises(ConfigError) as caught:
            CarrierUrl.parse("socks5://me:hidden@proxy/host")
        self.assertNotIn("hidden", str(caught.exception))

    @given(st.text(max_size=60))
    @settings(deadline=None, max_examples=300)
    def test_any_text(self, text: str) -> None:
        """Whatever is written, it is a URL or one kind of error."""
        for candidate in (text, f"tcp://{text}"):
            try:
                CarrierUrl.parse(candidate)
            except ConfigError:
                pass

    def test_what_is_logged(self) -> None:
        """Of a carrier whose path is a secret no more than scheme, host and port; of others all."""
        self.assertEqual(shown("ws://example.com:8080/t-secret?key-file=k"), "ws://example.com:8080")
        self.assertEqual(shown("https://[2001:db8::1]/t-secret"), "https://[2001:db8::1]")
        for name in (
            "tcp://example.com:8865",
            "connect://proxy:3128/example.com:443",
            "dns://192.0.2.1/t.example",
            "only",
        ):
            self.assertEqual(shown(name), name)

    def test_unknown_options(self) -> None:
        """An option that a carrier does not have is named."""
        with self.assertRaises(ConfigError) as caught:
            CarrierUrl.parse("tcp://host?colour=red").reject_unknown("size")
        self.assertIn("'colour'; it has size", str(caught.exception))


class SchemeTests(SynchronousTestCase):
    """Which module makes what."""

    def test_unknown_schemes(self) -> None:
        """An unknown one is told with those that exist, for either end."""
        for make, schemes in ((client_carrier, SCHEMES), (server_carrier, SERVER_SCHEMES)):
            with self.assertRaises(ConfigError) as caught:
                make("ftp://host", context(MemoryReactorClock()))
            for scheme in schemes:
                self.assertIn(scheme, str(caught.exception))

    def test_every_scheme_has_its_module(self) -> None:
        """Each module is there and makes what its side asks for."""
        from importlib import import_module

        for schemes, name in ((SCHEMES, "client"), (SERVER_SCHEMES, "server")):
            for module in set(schemes.values()):
                self.assertTrue(callable(getattr(import_module(f"mikanet.carriers.{module}"), name)), (module, name))
