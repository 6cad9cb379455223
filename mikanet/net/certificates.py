"""Why a server's certificate is rejected, in words that a user can act on.

OpenSSL says no more than "certificate verify failed" when a handshake is over; what it found it tells while it verifies.
"""

from __future__ import annotations

from typing import Any

from cryptography import x509
from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import verify_certificate_hostname, verify_certificate_ip_address

from mikanet.address import parse_ip

#: Numbers of X509_V_ERR, as OpenSSL's x509_vfy.h has them.
_NOT_YET_VALID, _EXPIRED = 9, 10
_SELF_SIGNED, _SELF_SIGNED_ROOT = 18, 19
_NO_SIGNER = frozenset({2, 20, 21})
_OTHER_NAME = 62

#: Names of a certificate that are shown.
_MOST_NAMES = 3


class CertificateWatch:
    """Notes what verification finds, for the connections to one server.

    :param option: what names a file of trusted certificates, in the user's words. :param named: whether it was used.
    :param name: the host name or address that a certificate must be for; None if somebody else looks at that.
    """

    def __init__(self, option: str, named: bool, name: str | None = None) -> None:
        self._option = option
        self._named = named
        self._name = name
        self._problem = 0
        self._names: list[str] = []

    def watch(self, connection: SSL.Connection) -> None:
        """Verify, and take notes."""
        self._problem = 0
        connection.set_verify(SSL.VERIFY_PEER, self._note)

    def _note(self, connection: Any, certificate: crypto.X509, problem: int, depth: int, ok: int) -> bool:
        if depth == 0:
            self._names = names_of(certificate)
            if ok and self._name is not None and not is_for(certificate, self._name):
                self._problem = _OTHER_NAME
                return False
            self._problem = 0
        if not ok:
            self._problem = problem
        return bool(ok)

    @property
    def rejected(self) -> str:
        """Why the last certificate was rejected; empty if none was."""
        problem, option = self._problem, self._option
        if not problem:
            return ""
        if problem == _EXPIRED:
            return "its certificate has expired: renew it at the server, or set the clock here"
        if problem == _NOT_YET_VALID:
            return "its certificate is not valid yet: set the clock here, or that of the machine that made it"
        if problem in (_SELF_SIGNED, _SELF_SIGNED_ROOT):
            what = "is self-signed" if problem == _SELF_SIGNED else "has a root that is not known here"
            if self._named:
                return f"its certificate {what}, and is not what {option} names"
            return f"its certificate {what}: name the right one with {option}"
        if problem in _NO_SIGNER:
            if self._named:
                return f"its certificate was not signed by what {option} names"
            return f"its certificate was signed by nobody known here: name the signer's with {option}"
        if problem == _OTHER_NAME:
            return self.other_name(self._name or "")
        return f"its certificate is rejected: OpenSSL's reason {problem}"

    def other_name(self, name: str) -> str:
        """The certificate is not for ``name``."""
        shown = ", ".join(self._names[:_MOST_NAMES]) + (", ..." if len(self._names) > _MOST_NAMES else "")
        return f"its certificate is for {shown or 'no name at all'}, not for {name}"


def is_for(certificate: crypto.X509, name: str) -> bool:
    """Whether a certificate is for a host name or an address (RFC 9525)."""
    verify = verify_certificate_hostname if parse_ip(name) is None else verify_certificate_ip_address
    try:
        verify(certificate.to_cryptography(), name)
    except (VerificationError, CertificateError, ValueError):
        return False
    return True


def names_of(certificate: crypto.X509) -> list[str]:
    """The host names and addresses that a certificate is for; none if it cannot be read."""
    try:
        found = certificate.to_cryptography().extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = [*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))]
    except (ValueError, x509.ExtensionNotFound):
        return []
    return [name for name in names if name.isprintable()]


def no_tls(problem: SSL.Error) -> bool:
    """Whether what came back was no TLS at all."""
    details: Any = problem.args[0] if problem.args else ()
    words = {str(each[-1]) for each in details if each} if isinstance(details, list) else set()
    return bool(words & {"wrong version number", "http request", "packet length too long", "record layer failure"})
