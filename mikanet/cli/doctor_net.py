"""What ``mikanet doctor`` sees of the network between here and a server: name, route, port, certificate."""

from __future__ import annotations

import datetime
import re
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography import x509

from mikanet.cli.doctor_findings import Finding, note, ok, problem

#: How long a port may take to answer, in seconds.
CONNECT_TIME = 4.0

#: A certificate that ends in fewer days is worth a word.
SOON = 14

_ENDPOINT = re.compile(r"(tcp|host|ssl|kcp):(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+)):(\d{1,5})")


@dataclass(frozen=True)
class Place:
    """Where a server is to be. :ivar udp: whether over UDP. :ivar tls: whether TLS comes first, in any case."""

    host: str
    port: int
    udp: bool = False
    tls: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def place_of(endpoint: str) -> Place | None:
    """The place in a client's endpoint string, also in one that wraps another; None if it names none."""
    text = endpoint
    while True:
        found = _ENDPOINT.search(text)
        if found is not None:
            kind, six, name, port = found.groups()
            return Place(six or name, int(port), udp=kind == "kcp", tls=kind == "ssl")
        plain = re.sub(r"\\(.)", r"\1", text)
        if plain == text:
            return None
        text = plain


def place_findings(place: Place, program: str) -> Iterator[Finding]:
    """Name, route and port; the last finding is a problem if the server cannot be reached.

    :param program: the server's, for what is to be done there.
    """
    kind = socket.SOCK_DGRAM if place.udp else socket.SOCK_STREAM
    began = time.monotonic()
    try:
        found = socket.getaddrinfo(place.host, place.port, type=kind)
    except OSError as error:
        text = f"{place.host} has no address: {error.strerror or error}"
        yield problem("name", text, f"getent hosts {place.host}   (is the name right, and does name resolution work?)")
        return
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    yield ok("name", f"{place.host} is {', '.join(addresses[:4])}, {(time.monotonic() - began) * 1000:.0f} ms")
    routes = [route for address in addresses if (route := _route(address, place.port)) is not None]
    if not routes:
        yield problem("route", f"there is no way from here to {addresses[0]}", f"ip route get {addresses[0]}")
        return
    yield ok("route", f"from {routes[0]}")
    if not place.udp:
        yield _port(place, program)


def _route(address: str, port: int) -> str | None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, port))
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _port(place: Place, program: str) -> Finding:
    began = time.monotonic()
    try:
        with socket.create_connection((place.host, place.port), CONNECT_TIME):
            return ok("port", f"{place} is open, {(time.monotonic() - began) * 1000:.0f} ms")
    except ConnectionRefusedError:
        text = f"{place} refuses connections: nothing listens there"
        return problem("port", text, f"on the server: mikanet {program} ...   (is it running, and on that port?)")
    except TimeoutError:
        text = f"{place} does not answer within {CONNECT_TIME:g} s: a firewall, or another machine"
        return problem("port", text, f"on the server: open TCP port {place.port} in its firewall and at its provider")
    except OSError as error:
        return problem("port", f"{place} cannot be reached: {error.strerror or error}", f"ip route get {place.host}")


def certificate_findings(place: Place, name: str) -> Iterator[Finding]:
    """The certificate that a server shows for a name: whose it is, and until when."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((place.host, place.port), CONNECT_TIME) as plain,
            context.wrap_socket(plain, server_hostname=name) as secured,
        ):
            shown = secured.getpeercert(binary_form=True)
            version = secured.version()
    except (OSError, ValueError) as error:
        text = f"{place} speaks no TLS: {getattr(error, 'reason', None) or error}"
        yield problem("TLS", text, f"openssl s_client -connect {place} -servername {name}")
        return
    if shown is None:
        yield problem("TLS", "the server shows no certificate", "give the server one with --certificate")
        return
    yield ok("TLS", f"{version}")
    yield from judge_certificate(x509.load_der_x509_certificate(shown), name)


def judge_certificate(certificate: x509.Certificate, name: str = "") -> Iterator[Finding]:
    """Whether it is for ``name``, if one is given, and valid for some time."""
    names = _names(certificate)
    if name and not any(_matches(pattern, name) for pattern in names):
        text = f"the certificate is for {', '.join(names) or 'nobody'}, not for {name}"
        yield problem(
            "certificate", text, "give the name that it is for as --server-name, or a certificate for this one"
        )
    now, end = datetime.datetime.now(datetime.UTC), certificate.not_valid_after_utc
    days = (end - now).days
    if certificate.not_valid_before_utc > now:
        begin = certificate.not_valid_before_utc
        yield problem("certificate", f"it is valid from {begin:%Y-%m-%d %H:%M} on: is this clock right?", "date")
    elif end <= now:
        yield problem("certificate", f"it has expired on {end:%Y-%m-%d}", "renew it on the server")
    elif days < SOON:
        yield note("certificate", f"it ends in {days} days, on {end:%Y-%m-%d}", "renew it on the server")
    else:
        yield ok("certificate", f"for {', '.join(names[:3]) or 'no name'}, until {end:%Y-%m-%d}")


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))]


def _matches(pattern: str, name: str) -> bool:
    pattern, name = pattern.lower(), name.lower().removesuffix(".")
    if pattern.startswith("*."):
        return name.partition(".")[2] == pattern[2:]
    return pattern == name
