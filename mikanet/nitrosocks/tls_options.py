"""NitroSocks: which TLS (N11): 1.3, or 1.2 with forward secrecy and AEAD only; no compression, renegotiation or tickets.

Contexts are pyOpenSSL's own and have no callback: one that fails would end a handshake in a traceback, and hellos bring
whatever their senders like. So an offer of ALPN gets no answer, as from a server that knows none, and names are compared
with service-identity when the handshake is done.
"""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.pyopenssl import verify_hostname, verify_ip_address

from mikanet.address import parse_ip
from mikanet.errors import ConfigError
from mikanet.nitrosocks.tls import TlsError

_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"

#: SSL_OP_NO_RENEGOTIATION, which pyOpenSSL has no name for.
_NO_RENEGOTIATION = 0x40000000

_BEGIN = b"-----BEGIN CERTIFICATE-----"


def _make_context() -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_TICKET | SSL.OP_CIPHER_SERVER_PREFERENCE | _NO_RENEGOTIATION)
    context.set_cipher_list(_CIPHERS)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
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
        self._context = self._load(pem, name)

    def replace(self, pem: bytes, name: str) -> None:
        """New connections get this certificate; those that are there keep theirs.

        :raises ConfigError: as the constructor; nothing has changed then.
        """
        self._context = self._load(pem, name)

    @staticmethod
    def _load(pem: bytes, name: str) -> SSL.Context:
        chain = certificates(pem, name)
        try:
            key = crypto.load_privatekey(crypto.FILETYPE_PEM, pem, b"")
        except (crypto.Error, ValueError, TypeError):
            raise ConfigError(
                f"{name} has no private key without a passphrase: put certificate and key into one file"
            ) from None
        context = _make_context()
        try:
            context.use_certificate(chain[0])
            for each in chain[1:]:
                context.add_extra_chain_cert(each)
            context.use_privatekey(key)
            context.check_privatekey()
        except SSL.Error:
            raise ConfigError(f"the private key in {name} is not that of its first certificate") from None
        return context

    def connection(self) -> SSL.Connection:
        """See :meth:`TlsSide.connection`."""
        connection = SSL.Connection(self._context, None)
        connection.set_accept_state()
        return connection

    def verify(self, connection: SSL.Connection) -> None:
        """Clients show no certificate."""

    def explain(self, connection: SSL.Connection, text: str) -> str:
        """See :meth:`TlsSide.explain`; OpenSSL's words are enough for a server's log."""
        return text


class ClientTls:
    """A client's side.

    :param server_name: what is asked for, and what the certificate must be for: a host name or an IP address. A dot at
        its end is not sent (RFC 6066 section 3).
    :param trust: who may have signed it: a root, the certificate that signed the server's, or the server's own; None for
        those that the system trusts; an empty list takes any certificate.
    :raises ConfigError: if the name is none.
    """

    def __init__(self, server_name: str, trust: list[crypto.X509] | None) -> None:
        self._ip = parse_ip(server_name) is not None
        self._name = server_name if self._ip else tls_name(server_name)
        self._verifies = trust is None or bool(trust)
        self._context = context = _make_context()
        if self._verifies:
            context.set_verify(SSL.VERIFY_PEER)
        if trust is None:
            context.set_default_verify_paths()
        elif trust:
            store = context.get_cert_store()
            assert store is not None
            for each in trust:
                store.add_cert(each)
            # What the user names is trusted, whether or not it has signed itself.
            store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)

    def connection(self) -> SSL.Connection:
        """See :meth:`TlsSide.connection`."""
        connection = SSL.Connection(self._context, None)
        if not self._ip:  # no name is sent for an address (RFC 6066 section 3)
            connection.set_tlsext_host_name(self._name.encode())
        connection.set_connect_state()
        return connection

    def verify(self, connection: SSL.Connection) -> None:
        """See :meth:`TlsSide.verify`; who signed the certificate was checked in the handshake."""
        if not self._verifies:
            return
        try:
            (verify_ip_address if self._ip else verify_hostname)(connection, self._name)
        except VerificationError:
            raise TlsError(
                f"the certificate is not for the server's name, {self._name}: give the one that it is for with --server-name"
            ) from None
        except (CertificateError, ValueError):
            raise TlsError(
                "the certificate names no host in its subjectAltName, where names are looked for; a common name is not enough"
            ) from None

    def explain(self, connection: SSL.Connection, text: str) -> str:
        """See :meth:`TlsSide.explain`."""
        if "wrong version number" in text or "packet length too long" in text:
            return f"{text}: the server does not answer in TLS; is this NitroSocks' port?"
        if "certificate verify failed" not in text:
            return text
        chain = connection.get_peer_cert_chain()
        why, advice = _distrust(chain[0].to_cryptography(), datetime.datetime.now(datetime.UTC)) if chain else _UNKNOWN
        return f"{text}: {why}; {advice}"


_UNKNOWN = (
    "nobody who is trusted here has signed the server's certificate",
    "give --tls-verify FILE with the certificate that signed it, or --tls-verify off",
)


def _distrust(certificate: x509.Certificate, now: datetime.datetime) -> tuple[str, str]:
    """Why a server's certificate was not taken, and what to do."""
    if certificate.not_valid_after_utc < now:
        return f"the server's certificate ended on {certificate.not_valid_after_utc:%Y-%m-%d}", "renew it there"
    if certificate.not_valid_before_utc > now:
        begin = certificate.not_valid_before_utc
        return f"the server's certificate begins on {begin:%Y-%m-%d}", "look at the clock of this machine"
    if _signed_itself(certificate):
        return (
            "the server's certificate has signed itself and is not the one that is trusted here",
            "give it with --tls-verify FILE (server.crt of mikanet keygen), or take any with --tls-verify off",
        )
    return _UNKNOWN


def _signed_itself(certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(certificate)
    except (InvalidSignature, TypeError, ValueError):
        return False
    return True


def tls_name(name: str) -> str:
    """A server's name as it travels in a hello: ASCII, no dot at its end.

    :raises ConfigError: if it is none.
    """
    text = name.removesuffix(".")
    try:
        found = text.encode("idna").decode()
    except UnicodeError:
        raise ConfigError(f"{name!r} is no server name") from None
    if not found:
        raise ConfigError(f"{name!r} is no server name")
    return found
