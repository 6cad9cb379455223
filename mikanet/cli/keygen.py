"""``mikanet keygen SYSTEM DIR``: the keys of a server, and what its clients need of them."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mikanet.address import parse_ip
from mikanet.cli.genkey import new_secret
from mikanet.cli.words import WordsOptions as BaseOptions
from mikanet.crypto import rsa_oaep
from mikanet.errors import ConfigError
from mikanet.service.secret_files import read_secret, write_private_file

#: How long a certificate of ours is good for, in days: clients name it themselves, so that nobody renews it for them.
_CERTIFICATE_DAYS = 3650

#: Most characters of a common name (RFC 5280, appendix A.1: ub-common-name).
_MAX_COMMON_NAME = 64


class Options(BaseOptions):
    """Options of ``mikanet keygen``."""

    command = "mikanet keygen"
    synopsis = "SYSTEM DIR [options]"
    longdesc = "Makes keys in DIR, which is created if it is not there. Files that exist are never replaced."

    optParameters: ClassVar[list[list[object]]] = [
        ["passphrase-file", None, None, "megaki: file whose first line becomes the private key's passphrase"],
        ["name", None, None, "nitrosocks: make a self-signed certificate, too, for this host name or IP address"],
    ]

    folder: Path
    make: Callable[[Options], list[Path]]

    def parseArgs(self, *words: str) -> None:
        """The system, then the folder."""
        if len(words) != 2:
            raise ConfigError(f"say which keys and where: mikanet keygen {' | '.join(SYSTEMS)} DIR")
        system, folder = words
        if system not in SYSTEMS:
            raise ConfigError(f"there are no keys for {system!r}: use one of {', '.join(SYSTEMS)}")
        self.make, self.folder = SYSTEMS[system], Path(folder)
        for option, owner in (("passphrase-file", "megaki"), ("name", "nitrosocks")):
            if self[option] is not None and owner != system:
                raise ConfigError(f"--{option} is for the keys of {owner}: leave it out for {system}")


def run(options: Options) -> int:
    """Make the keys and name the files."""
    try:
        for path in options.make(options):
            print(path)
    except (ConfigError, OSError) as problem:
        raise SystemExit(f"{options.command}: {' '.join(str(problem).split())}") from None
    return 0


def megaki(options: Options) -> list[Path]:
    """``server-private.pem`` for the server; ``server.pub`` and ``server.cert``, the same key, for its clients."""
    passphrase = None
    if options["passphrase-file"]:
        passphrase = read_secret(options["passphrase-file"], bool(options["insecure-ok"]))
    private, public, raw = _new_files(options.folder, "server-private.pem", "server.pub", "server.cert")
    key = rsa_oaep.generate()
    write_private_file(private, rsa_oaep.private_to_pem(key, passphrase))
    public.write_bytes(rsa_oaep.public_to_pem(key.public_key()))
    raw.write_bytes(rsa_oaep.public_to_raw(key.public_key()))
    return [private, public, raw]


def nitrosocks(options: Options) -> list[Path]:
    """``server.pub`` and ``tokens`` for the server, ``client.key`` and ``token`` for the client; all of them secret.

    With ``--name`` also ``server.pem``, key and certificate for the server, and ``server.crt``, the certificate alone, by
    which clients know it.
    """
    names = ["server.pub", "tokens", "client.key", "token"]
    certificate = None
    if options["name"] is not None:
        certificate = self_signed(options["name"])
        names += ["server.pem", "server.crt"]
    public, tokens, private, token, *tls = _new_files(options.folder, *names)
    key = rsa_oaep.generate()
    secret = new_secret()
    write_private_file(public, rsa_oaep.public_to_pem(key.public_key()))
    write_private_file(tokens, f"client {secret}\n".encode())
    write_private_file(private, rsa_oaep.private_to_pem(key))
    write_private_file(token, f"{secret}\n".encode())
    if certificate is not None:
        tls_private, tls_public = certificate
        write_private_file(tls[0], tls_private + tls_public)
        tls[1].write_bytes(tls_public)
    return [public, tokens, private, token, *tls]


def self_signed(name: str) -> tuple[bytes, bytes]:
    """A new P-256 key and a certificate for ``name`` that it has signed itself, both in PEM.

    The certificate is for servers of TLS and may sign no other (RFC 5280, section 4.2).

    :param name: a host name, also ``*.example.com``, or an IP address.
    :raises ConfigError: if it is none.
    """
    ip = parse_ip(name.removeprefix("[").removesuffix("]"))
    alternative = x509.DNSName(_ascii_name(name)) if ip is None else x509.IPAddress(ip)
    shown = str(alternative.value)
    common = [x509.NameAttribute(NameOID.COMMON_NAME, shown)] if len(shown) <= _MAX_COMMON_NAME else []
    key = ec.generate_private_key(ec.SECP256R1())
    # A client's clock may be a little behind ours.
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(common))
        .issuer_name(x509.Name(common))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=_CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=not common)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, certificate.public_bytes(serialization.Encoding.PEM)


def _ascii_name(name: str) -> str:
    """A host name as certificates have it."""
    text = name.removesuffix(".").lower()
    wildcard = "*." if text.startswith("*.") else ""
    try:
        found = text.removeprefix("*.").encode("idna").decode()
    except UnicodeError:
        found = ""
    if not found or not all(letter.isalnum() or letter in "-." for letter in found) or found.startswith("."):
        raise ConfigError(f"--name {name!r} is neither a host name nor an IP address")
    return wildcard + found


def _new_files(folder: Path, *names: str) -> list[Path]:
    """Paths of files in the folder, none of which is there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in names]
    for path in paths:
        if path.exists():
            raise ConfigError(f"{path} is there already: give another folder, or move it away")
    return paths


#: What keys there are, by the name of their system.
SYSTEMS: dict[str, Callable[[Options], list[Path]]] = {"megaki": megaki, "nitrosocks": nitrosocks}
