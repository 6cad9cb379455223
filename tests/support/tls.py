"""Certificates of every kind, and a TLS server that is no more than OpenSSL with bytes in and out."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from OpenSSL import SSL, crypto


@dataclass(frozen=True)
class Made:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.PEM)


def make(*names: str, signer: Made | None = None, days: tuple[float, float] = (-1, 2), ca: bool = True) -> Made:
    """A certificate for ``names``, valid so many days from now to then; without a signer it is self-signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0] if names else "nobody")])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder(signer.certificate.subject if signer else subject, subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca, None), True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), False)
    return Made(builder.sign(signer.key if signer else key, hashes.SHA256()), key)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class TlsServer:
    """Answers handshakes.

    :param chain: the certificates that it shows, its own first.
    """

    def __init__(self, *chain: Made) -> None:
        context = SSL.Context(SSL.TLS_METHOD)
        context.use_certificate(crypto.X509.from_cryptography(chain[0].certificate))
        context.use_privatekey(crypto.PKey.from_cryptography_key(chain[0].key))
        for made in chain[1:]:
            context.add_extra_chain_cert(crypto.X509.from_cryptography(made.certificate))
        self._connection = SSL.Connection(context, None)
        self._connection.set_accept_state()

    def answer(self, data: bytes) -> bytes:
        """What it sends on such bytes."""
        if data:
            self._connection.bio_write(data)
        try:
            self._connection.do_handshake()
        except SSL.Error:
            pass
        try:
            return self._connection.bio_read(1 << 16)
        except SSL.WantReadError:
            return b""
