"""Names as they are written, resolv.conf, the hosts file, and what is remembered."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import parse_ip
from mikanet.errors import DestinationError
from mikanet.net.names import NameCache, ResolverConfig, is_localhost, parse_hosts, parse_resolv_conf, to_ascii


class NameTests(SynchronousTestCase):
    """:func:`to_ascii`."""

    def test_ascii_goes_as_it_is(self) -> None:
        """What IDNA would not have, and name servers do."""
        for name in (
            "a_b.example",
            "r3---sn-x.example",
            "ab--cd.example",
            "trailing-.example",
            "-leading.example",
            "_dmarc.example.org",
            "xn--nxasmq6b.example",
            "single",
            "1.2.3.example",
        ):
            self.assertEqual(to_ascii(name), name)
        self.assertEqual(to_ascii("WWW.Example.COM."), "www.example.com")

    def test_other_letters(self) -> None:
        """UTS 46 maps, IDNA encodes; these are of the tables of UTS 46 and RFC 5891."""
        for name, expected in (
            ("bücher.example", "xn--bcher-kva.example"),
            ("BÜCHER.example", "xn--bcher-kva.example"),
            ("faß.de", "xn--fa-hia.de"),
            ("日本語。jp", "xn--wgv71a119e.jp"),
            ("www\uff0eexample\uff0ecom", "www.example.com"),
        ):
            self.assertEqual(to_ascii(name), expected)

    def test_no_names(self) -> None:
        """Everything else is one error."""
        for name in (
            "",
            ".",
            "a..b",
            "a b",
            "a\0b",
            "a" * 64 + ".b",
            "a." * 127 + "a",
            "\x7f.b",
            "ü\u200d.b",
            "x\u0300" * 70,
        ):
            self.assertRaises(DestinationError, to_ascii, name)

    @given(st.text(max_size=80))
    def test_any_text(self, text: str) -> None:
        """Whatever comes, the result is a name of letters that a question can hold, or the one error."""
        try:
            name = to_ascii(text)
        except DestinationError:
            return
        self.assertTrue(name.isascii() and 0 < len(name) <= 253)

    def test_localhost(self) -> None:
        """By its form."""
        self.assertTrue(is_localhost("localhost") and is_localhost("a.localhost"))
        self.assertFalse(is_localhost("localhost.example") or is_localhost("mylocalhost"))


class ConfigTests(SynchronousTestCase):
    """Files that machines have."""

    def test_resolv_conf(self) -> None:
        """Servers and search domains, with comments and what is unknown between them."""
        text = (
            "# made by a program\n; and another\nnameserver 192.0.2.1 # first\nnameserver fe80::1%eth0\nnameserver nonsense\n"
            "domain old.example\noptions ndots:1\nnameserver 2001:db8::53\nnameserver 192.0.2.4\nsearch a.example B.example.\nnameserver\n"
        )
        self.assertEqual(
            parse_resolv_conf(text),
            ResolverConfig(("192.0.2.1", "fe80::1%eth0", "2001:db8::53"), ("a.example", "b.example")),
        )
        self.assertEqual(parse_resolv_conf(""), ResolverConfig(("127.0.0.1",), ()))

    def test_hosts(self) -> None:
        """All names of each line; one name may stand on several."""
        text = "127.0.0.1 localhost\n::1 localhost ip6-localhost # both\n192.0.2.1\tWww.Example www\n\nnonsense a b\n192.0.2.1 www\n"
        found = parse_hosts(text)
        self.assertEqual([str(ip) for ip in found["localhost"]], ["127.0.0.1", "::1"])
        self.assertEqual([str(ip) for ip in found["www.example"]], ["192.0.2.1"])
        self.assertEqual(found["www"], found["www.example"])
        self.assertNotIn("a", found)

    @given(st.text(max_size=200))
    def test_any_file(self, text: str) -> None:
        """No file is an error."""
        parse_hosts(text)
        self.assertTrue(parse_resolv_conf(text).servers)


class CacheTests(SynchronousTestCase):
    """:class:`NameCache`."""

    def test_time_and_size(self) -> None:
        """An answer holds until its time; the oldest go when there are too many."""
        ip = parse_ip("192.0.2.1")
        assert ip is not None
        cache = NameCache(most=3)
        cache.put("a", (ip,), 10.0)
        self.assertEqual(cache.get("a", 9.9), (ip,))
        self.assertIsNone(cache.get("a", 10.0))
        for name in "bcde":
            cache.put(name, (ip,), 99.0)
        self.assertEqual(len(cache), 3)
        self.assertIsNone(cache.get("b", 0.0))
