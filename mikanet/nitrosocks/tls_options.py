"""NitroSocks: which TLS (N11): 1.3, or 1.2 with forward secrecy and AEAD only; no compression, renegotiation or tickets.

Contexts are made by Twisted from pyOpenSSL's; certificates are verified by Twisted with service-identity.
"""

from __future__ import annotations

from OpenSSL import SSL, crypto
from service_identity.pyopenssl import verify_hostname, verify_ip_address
from twisted.internet import ssl

from mikanet.address import parse_ip
from mikanet.errors import ConfigError

_CIPHERS = ssl.AcceptableCiphers.fromOpenSSLCipherString("ECDHE+AESGCM:ECDHE+CHACHA20")

#: SSL_OP_NO_RENEGOTIATION, which pyOpenSSL has no name for.
_NO_RENEGOTIATION = 0x40000000

_BEGIN = b"-----BEGIN CERTIFICATE-----"


def _harden(context: SSL.Context) -> SSL.Context:
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_TICKET | _NO_RENEGOTIATION)
    # An idle connection holds no buffers.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    return context


def certificates(pem: bytes, name: str) -> list[crypto.X509]:
    """Every certificate of a PEM file, in order.

    :raises ConfigError: if there is none, or one is broken.
    """
    parts = pem.split(_BEGIN)[1:]
    try:
        found = [crypto.load_certificate(crypto.FILETYPE_PEM, _BEGIN + part) for part in parts]
    except (crypto.Error, ValueError):
        raise ConfigError(f"{name} has a certificate that cannot be read") from None
    if not found:
        raise ConfigError(f"{name} has no certificate: it needs one in PEM")
    return found


class ServerTls:
    """A server's side, from a PEM file with its private key and its certificate, then those above it.

    :raises ConfigError: if the file has not both, or they do not belong together.
    """

    def __init__(self, pem: bytes, name: str) -> None:
        chain = certificates(pem, name)
        try:
            key = crypto.load_privatekey(crypto.FILETYPE_PEM, pem, b"")
        except (crypto.Error, ValueError, TypeError):
            raise ConfigError(
                f"{name} has no private key without a passphrase: put certificate and key into one file"
            ) from None
        options = ssl.CertificateOptions(
            privateKey=key, certificate=chain[0], extraCertChain=chain[1:], acceptableCiphers=_CIPHERS
        )
        try:
            self._context = _harden(options.getContext())
            self._context.check_privatekey()
        except SSL.Error:
            raise ConfigError(f"the private key in {name} is not that of its first certificate") from None
        self._context.set_session_cache_mode(SSL.SESS_CACHE_OFF)

    def connection(self) -> SSL.Connection:
        """See :meth:`TlsSide.connection`."""
        connection = SSL.Connection(self._context, None)
        connection.set_accept_state()
        return connection

    def verify(self, connection: SSL.Connection) -> None:
        """Clients show no certificate."""


class ClientTls:
    """A client's side.

    :param server_name: what is asked for, and what the certificate must be for: a host name or an IP address.
    :param trust: who may have signed it; None for those that the system trusts; an empty list takes any certificate.
    :raises ConfigError: if the name is none.
    """

    def __init__(self, server_name: str, trust: list[crypto.X509] | None) -> None:
        self._ip = parse_ip(server_name) is not None
        try:
            self._name = server_name if self._ip else server_name.encode("idna").decode()
        except UnicodeError:
            raise ConfigError(f"{server_name!r} is no server name") from None
        self._verifies = trust is None or bool(trust)
        if not self._verifies:
            options = ssl.CertificateOptions(verify=False, acceptableCiphers=_CIPHERS)
        elif trust is None:
            options = ssl.CertificateOptions(trustRoot=ssl.platformTrust(), acceptableCiphers=_CIPHERS)
        else:
            roots = ssl.trustRootFromCertificates([ssl.Certificate(each) for each in trust])
            options = ssl.CertificateOptions(trustRoot=roots, acceptableCiphers=_CIPHERS)
        self._context = _harden(options.getContext())

    def connection(self) -> SSL.Connection:
        """See :meth:`TlsSide.connection`."""
        connection = SSL.Connection(self._context, None)
        if not self._ip:  # no name is sent for an address (RFC 6066 section 3)
            connection.set_tlsext_host_name(self._name.encode())
        connection.set_connect_state()
        return connection

    def verify(self, connection: SSL.Connection) -> None:
        """See :meth:`TlsSide.verify`; who signed the certificate was checked in the handshake."""
        if self._verifies:
            (verify_ip_address if self._ip else verify_hostname)(connection, self._name)
