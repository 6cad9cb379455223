"""``mikanet keygen``."""

from __future__ import annotations

import io
import ipaddress
import stat
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from mikanet.cli import keygen
from mikanet.crypto import rsa_oaep
from mikanet.nitrosocks.tls import TlsError
from mikanet.nitrosocks.tls_options import ClientTls, ServerTls, certificates
from mikanet.service.secret_files import write_private_file


class MegakiTests(SynchronousTestCase):
    """Keys for Megaki."""

    def setUp(self) -> None:
        """A folder that is not there yet."""
        self.folder = Path(self.mktemp())
        self.out = io.StringIO()
        self.patch(sys, "stdout", self.out)

    def run_keygen(self, *words: str) -> int:
        """Parse and run."""
        options = keygen.Options()
        options.parseOptions(list(words))
        return keygen.run(options)

    def test_files(self) -> None:
        """Three files with one key: the private one readable by its owner alone, both public forms for clients."""
        self.assertEqual(self.run_keygen("megaki", str(self.folder)), 0)
        names = ["server-private.pem", "server.pub", "server.cert"]
        self.assertEqual(self.out.getvalue().split(), [str(self.folder / name) for name in names])
        private, public, raw = (self.folder / name for name in names)
        self.assertEqual(stat.S_IMODE(private.stat().st_mode), 0o600)
        key = rsa_oaep.load_private(private.read_bytes(), "x")
        self.assertEqual(len(raw.read_bytes()), 260)
        for file in (public, raw):
            found = rsa_oaep.load_public(file.read_bytes(), "x")
            self.assertEqual(found.public_numbers(), key.public_key().public_numbers())

    def test_passphrase(self) -> None:
        """With a passphrase the private key has the 1,766 bytes that the original reads, wherever the option stands."""
        secret = Path(self.mktemp())
        write_private_file(secret, b"a passphrase of some length\n")
        self.run_keygen("megaki", str(self.folder), "--passphrase-file", str(secret))
        content = (self.folder / "server-private.pem").read_bytes()
        self.assertEqual(len(content), 1766)
        rsa_oaep.load_private(content, "x", b"a passphrase of some length")

    def test_mistakes(self) -> None:
        """One line each; nothing that is there is replaced."""
        self.folder.mkdir()
        (self.folder / "server.pub").write_text("mine")
        for words in (
            ["megaki", str(self.folder)],
            [],
            ["megaki"],
            ["mika", "x"],
            ["megaki", "x", "--what"],
            ["megaki", "x", "--passphrase-file"],
            ["megaki", "x", "--passphrase-file=/not/there"],
            ["megaki", "x", "--name", "example.com"],
            ["nitrosocks", "x", "--passphrase-file", "x"],
            ["nitrosocks", "x", "--name", ""],
            ["nitrosocks", "x", "--name", "two words"],
            ["nitrosocks", "x", "--name", "a..b"],
            ["nitrosocks", "x", "--name", "example.com:443"],
        ):
            with self.assertRaises(SystemExit) as caught:
                self.run_keygen(*words)
            self.assertNotIn("\n", str(caught.exception))
        self.assertEqual((self.folder / "server.pub").read_text(), "mine")
        self.assertFalse((self.folder / "server-private.pem").exists())


class NitroSocksTests(SynchronousTestCase):
    """Keys for NitroSocks."""

    def test_files(self) -> None:
        """Two halves of one pair and one token twice, all four files their owner's alone (N1)."""
        folder = Path(self.mktemp())
        self.patch(sys, "stdout", io.StringIO())
        options = keygen.Options()
        options.parseOptions(["nitrosocks", str(folder)])
        self.assertEqual(keygen.run(options), 0)
        files = [folder / name for name in ("server.pub", "tokens", "client.key", "token")]
        self.assertEqual([stat.S_IMODE(file.stat().st_mode) for file in files], [0o600] * 4)
        public, tokens, private, token = (file.read_bytes() for file in files)
        self.assertEqual(tokens, b"client " + token)
        self.assertGreaterEqual(len(token.strip()), 43)
        pair = rsa_oaep.load_private(private, "x").public_key().public_numbers()
        self.assertEqual(rsa_oaep.load_public(public, "x").public_numbers(), pair)
        self.assertRaises(SystemExit, keygen.run, options)

    def make(self, name: str) -> Path:
        """A new folder with keys and a certificate for a name."""
        folder = Path(self.mktemp())
        self.patch(sys, "stdout", io.StringIO())
        options = keygen.Options()
        options.parseOptions(["nitrosocks", str(folder), "--name", name])
        self.assertEqual(keygen.run(options), 0)
        return folder

    def test_certificate(self) -> None:
        """With a name there are a file of key and certificate, their owner's alone, and the certificate by itself."""
        for name, alternative in (
            ("tunnel.example.com", x509.DNSName("tunnel.example.com")),
            ("Bücher.example.", x509.DNSName("xn--bcher-kva.example")),
            ("*.example.com", x509.DNSName("*.example.com")),
            ("192.0.2.7", x509.IPAddress(ipaddress.ip_address("192.0.2.7"))),
            ("[2001:db8::7]", x509.IPAddress(ipaddress.ip_address("2001:db8::7"))),
            (f"{'a' * 60}.{'b' * 60}.example", x509.DNSName(f"{'a' * 60}.{'b' * 60}.example")),
        ):
            folder = self.make(name)
            both, public = folder / "server.pem", folder / "server.crt"
            self.assertEqual(stat.S_IMODE(both.stat().st_mode), 0o600)
            certificate = x509.load_pem_x509_certificate(public.read_bytes())
            self.assertTrue(both.read_bytes().endswith(public.read_bytes()))
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            self.assertEqual(list(names), [alternative])
            certificate.verify_directly_issued_by(certificate)
            key = load_pem_private_key(both.read_bytes(), None)
            self.assertEqual(key.public_key(), certificate.public_key())
            ServerTls(both.read_bytes(), "server.pem")

    def test_handshake(self) -> None:
        """A client that is told the certificate takes this server and no other, and no other name."""
        folder, other = self.make("tunnel.example.com"), self.make("tunnel.example.com")
        server = ServerTls((folder / "server.pem").read_bytes(), "server.pem")
        right = certificates((folder / "server.crt").read_bytes(), "server.crt")
        wrong = certificates((other / "server.crt").read_bytes(), "server.crt")
        shake_hands(server, ClientTls("tunnel.example.com", right))
        self.assertRaises(SSL.Error, shake_hands, server, ClientTls("tunnel.example.com", wrong))
        self.assertRaises(TlsError, shake_hands, server, ClientTls("other.example.com", right))


def shake_hands(server: ServerTls, client: ClientTls) -> None:
    """A whole handshake in memory, then the client's check of the name."""
    ends = (client.connection(), server.connection())
    for _ in range(4):
        for this, other in (ends, ends[::-1]):
            try:
                this.do_handshake()
            except SSL.WantReadError:
                pass
            try:
                other.bio_write(this.bio_read(1 << 16))
            except SSL.WantReadError:
                pass
    client.verify(ends[0])
