"""Tests of mikanet.net.certificates with real handshakes in memory."""

from __future__ import annotations

from OpenSSL import SSL, crypto
from twisted.trial.unittest import SynchronousTestCase

from mikanet.net.certificates import CertificateWatch, names_of, no_tls
from tests.support.tls import Made, TlsServer, make


def rejected(
    *chain: Made, trust: Made | None = None, name: str | None = None
) -> tuple[str, SSL.Error | None, CertificateWatch]:
    """What a client says of a server that shows ``chain``, and trusts ``trust``."""
    watch = CertificateWatch("--trust FILE", trust is not None, name)
    context = SSL.Context(SSL.TLS_METHOD)
    if trust is not None:
        store = context.get_cert_store()
        assert store is not None
        store.add_cert(crypto.X509.from_cryptography(trust.certificate))
    client = SSL.Connection(context, None)
    watch.watch(client)
    client.set_connect_state()
    server = TlsServer(*chain)
    for _ in range(6):
        try:
            client.do_handshake()
            break
        except SSL.WantReadError:
            client.bio_write(server.answer(client.bio_read(1 << 16)))
        except SSL.Error as problem:
            return watch.rejected, problem, watch
    return watch.rejected, None, watch


class RejectedTests(SynchronousTestCase):
    """Each kind of rejected certificate has its own words, with the option that helps."""

    def test_good(self) -> None:
        """One that is signed by what is trusted is not rejected."""
        root = make("root")
        leaf = make("server.example", signer=root, ca=False)
        self.assertEqual(rejected(leaf, trust=root)[:2], ("", None))

    def test_self_signed(self) -> None:
        """Without a file that names it, and with one that names another."""
        made = make("server.example")
        self.assertEqual(rejected(made)[0], "its certificate is self-signed: name the right one with --trust FILE")
        self.assertEqual(
            rejected(made, trust=make("other.example"))[0],
            "its certificate is self-signed, and is not what --trust FILE names",
        )

    def test_unknown_signers(self) -> None:
        """A root that is shown and not known, and one that is not shown."""
        root = make("root")
        leaf = make("server.example", signer=root, ca=False)
        self.assertEqual(
            rejected(leaf, root)[0],
            "its certificate has a root that is not known here: name the right one with --trust FILE",
        )
        self.assertEqual(
            rejected(leaf)[0],
            "its certificate was signed by nobody known here: name the signer's with --trust FILE",
        )
        self.assertEqual(
            rejected(leaf, trust=make("another root"))[0],
            "its certificate was not signed by what --trust FILE names",
        )

    def test_times(self) -> None:
        """Expired, and not valid yet."""
        root = make("root", days=(-20, 20))
        expired = make("server.example", signer=root, days=(-9, -1), ca=False)
        self.assertEqual(
            rejected(expired, trust=root)[0],
            "its certificate has expired: renew it at the server, or set the clock here",
        )
        early = make("server.example", signer=root, days=(1, 9), ca=False)
        self.assertEqual(
            rejected(early, trust=root)[0],
            "its certificate is not valid yet: set the clock here, or that of the machine that made it",
        )

    def test_other_names(self) -> None:
        """The names that it is for are told, the first three of them."""
        root = make("root")
        names = ("a.example", "b.example", "192.0.2.1", "c.example")
        for count, shown in ((1, "a.example"), (4, "a.example, b.example, c.example, ...")):
            watch = rejected(make(*names[:count], signer=root, ca=False), trust=root)[2]
            self.assertEqual(watch.other_name("x.example"), f"its certificate is for {shown}, not for x.example")
        made = make("a.example", "192.0.2.1", signer=root, ca=False)
        for name in ("a.example", "192.0.2.1"):
            self.assertEqual(rejected(made, trust=root, name=name)[:2], ("", None))
        for name in ("b.example", "192.0.2.2", "example"):
            words, problem, _ = rejected(made, trust=root, name=name)
            self.assertEqual(words, f"its certificate is for a.example, 192.0.2.1, not for {name}")
            self.assertIsNotNone(problem)
        watch = rejected(make(signer=root, ca=False), trust=root)[2]
        self.assertEqual(watch.other_name("x.example"), "its certificate is for no name at all, not for x.example")

    def test_names(self) -> None:
        """Addresses are names, too."""
        found = names_of(crypto.X509.from_cryptography(make("192.0.2.1", "2001:db8::1").certificate))
        self.assertEqual(found, ["192.0.2.1", "2001:db8::1"])

    def test_no_tls(self) -> None:
        """What is no TLS is told from TLS that fails."""
        for answer in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b"220 mail.example ESMTP\r\n"):
            client = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
            client.set_connect_state()
            with self.assertRaises(SSL.WantReadError):
                client.do_handshake()
            client.bio_write(answer)
            with self.assertRaises(SSL.Error) as caught:
                client.do_handshake()
            self.assertTrue(no_tls(caught.exception), answer)
        problem = rejected(make("server.example"))[1]
        assert problem is not None
        self.assertFalse(no_tls(problem))
