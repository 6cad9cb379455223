"""What NitroSocks reads from files and words: keys, tokens, certificates, realms."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mikanet.counters import Counters
from mikanet.crypto import rsa_oaep
from mikanet.errors import ConfigError
from mikanet.nitrosocks.client_protocol import NitroClientConfig
from mikanet.nitrosocks.keys import decrypt_challenge, encrypt_challenge, frame_key
from mikanet.nitrosocks.link import Token
from mikanet.nitrosocks.protocol import RealmConfig
from mikanet.nitrosocks.realm import MAX_TOKENS, Realm
from mikanet.nitrosocks.tls_options import ClientTls, certificates, tls_name
from mikanet.nitrosocks.wire import EncryptType
from mikanet.service.secret_files import is_weak, read_private_file, read_private_text, read_secret

#: Longest token, in bytes.
MAX_TOKEN = 255

_CIPHERS = {"aes-128-gcm": EncryptType.AES_128_GCM, "aes-256-gcm": EncryptType.AES_256_GCM}
_ON_OFF = {"off": False, "require": True}


def read_tokens(path: str, insecure_ok: bool = False) -> list[Token]:
    """A server's tokens: lines of ``name token``; empty lines and lines that begin with ``#`` are skipped.

    :raises ConfigError: if the file cannot be used, a line is not of that form, or a token is weak.
    """
    try:
        lines = read_private_text(path).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    tokens: list[Token] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = line.split()
        if len(words) != 2:
            raise ConfigError(f"line {number} of {path} is not a name and a token")
        secret = words[1].encode()
        if len(secret) > MAX_TOKEN:
            raise ConfigError(f"the token in line {number} of {path} is longer than {MAX_TOKEN} bytes")
        if not insecure_ok and is_weak(secret):
            raise ConfigError(
                f"the token in line {number} of {path} is too easy to guess: mikanet genkey prints a good one"
            )
        tokens.append(Token(words[0], secret))
    if not tokens:
        raise ConfigError(f"{path} has no line with a name and a token")
    if len(tokens) > MAX_TOKENS:
        raise ConfigError(f"{path} has {len(tokens)} tokens; {MAX_TOKENS} are the most of one realm")
    for what in ("name", "secret"):
        if len({getattr(token, what) for token in tokens}) < len(tokens):
            raise ConfigError(f"{path} has the same {'name' if what == 'name' else 'token'} twice")
    return tokens


def read_realm(name: str, public_key: str, tokens: str, insecure_ok: bool) -> RealmConfig:
    """A realm from its files.

    :raises ConfigError: if one of them cannot be used.
    """
    public = rsa_oaep.load_public(read_private_file(public_key), public_key)
    realm = Realm(name, read_tokens(tokens, insecure_ok), time.time)
    return RealmConfig(realm, frame_key(public), partial(encrypt_challenge, public))


def parse_realm(text: str) -> tuple[str, str, str]:
    """``NAME=PUBLIC-KEY,TOKENS`` as its three parts, the name as clients send it: in lower case and ASCII.

    :raises ConfigError: if it is not of that form.
    """
    name, equals, files = text.partition("=")
    public_key, comma, tokens = files.partition(",")
    if not (equals and comma and name and public_key and tokens):
        raise ConfigError(f"--realm {text!r} is not NAME=PUBLIC-KEY,TOKENS")
    try:
        return tls_name(name.lower()), public_key, tokens
    except ConfigError as problem:
        raise ConfigError(f"--realm {text!r}: {problem}") from None


def refuse_tls_in_tls(option: str, endpoint: str, right: str, where: str) -> None:
    """NitroSocks makes its own TLS: an endpoint of TLS around it is a mistake.

    :raises ConfigError: if the endpoint is one.
    """
    kind = endpoint.partition(":")[0].lower()
    if kind in ("ssl", "tls"):
        raise ConfigError(f"{option} {kind}: would put TLS into TLS: give {right}; {where}")


def parse_cipher(name: str) -> EncryptType:
    """A cipher by its name.

    :raises ConfigError: if there is none of that name.
    """
    found = _CIPHERS.get(name)
    if found is None:
        raise ConfigError(f"unknown cipher {name!r}: use one of {', '.join(_CIPHERS)}")
    return found


def parse_binding(word: str) -> bool:
    """Whether keys are bound to the TLS connection.

    :raises ConfigError: if the word is neither ``off`` nor ``require``.
    """
    if word not in _ON_OFF:
        raise ConfigError(f"tls-binding is off or require, not {word!r}")
    return _ON_OFF[word]


def read_token(path: str, insecure_ok: bool) -> bytes:
    """A client's token.

    :raises ConfigError: if the file cannot be used, or is another of the client's files.
    """
    token = read_secret(path, insecure_ok).strip()
    if token.startswith(b"-----BEGIN "):
        raise ConfigError(f"{path} is a PEM file, not a token: --token-file takes the file token of mikanet keygen")
    if len(token.split()) != 1:
        raise ConfigError(
            f"the first line of {path} is not a token alone: there are blanks in it, as in the server's file of names and tokens"
        )
    if len(token) > MAX_TOKEN:
        raise ConfigError(f"the token in {path} is longer than {MAX_TOKEN} bytes")
    return token


def make_client_config(
    *,
    server_name: str,
    private_key: str,
    token_file: str,
    tls_verify: str,
    cipher: str,
    tls_binding: str,
    insecure_ok: bool,
    counters: Counters | None = None,
    verbose: bool = False,
) -> NitroClientConfig:
    """A client from its options' values.

    :raises ConfigError: if one of them cannot be used.
    """
    private = rsa_oaep.load_private(read_private_file(private_key), private_key)
    token = read_token(token_file, insecure_ok)
    decrypt: Callable[[bytes], bytes] = partial(decrypt_challenge, private)
    return NitroClientConfig(
        tls=_client_tls(server_name, tls_verify),
        k0=frame_key(private.public_key()),
        decrypt=decrypt,
        token=token,
        counters=counters or Counters(),
        least_type=parse_cipher(cipher),
        binding=parse_binding(tls_binding),
        log_destinations=verbose,
    )


def _client_tls(server_name: str, verify: str) -> ClientTls:
    if verify == "system":
        return ClientTls(server_name, None)
    if verify == "off":
        return ClientTls(server_name, [])
    try:
        content = Path(verify).read_bytes()
    except OSError as problem:
        raise ConfigError(
            f"tls-verify is system, off or a file of certificates; cannot read {verify}: {problem.strerror or problem}"
        ) from None
    return ClientTls(server_name, certificates(content, verify))
