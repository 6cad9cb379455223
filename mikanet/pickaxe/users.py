"""The server's users: a private file of lines ``name:way:secret``, as ``mikanet passwd`` prints them.

``way`` is ``mikanet`` with the stretched password in hexadecimal, or ``draft`` with the password itself, which the
draft's key derivation needs.
"""

from __future__ import annotations

from mikanet.errors import ConfigError
from mikanet.pickaxe.keys import KEY_SIZE, Kdf, Secret, normal_user


def format_user(user: str, secret: Secret) -> str:
    """A line of the file.

    :raises ConfigError: if the name cannot be written in it.
    """
    name = normal_user(user)
    if ":" in name or name.startswith("#"):
        raise ConfigError("a user's name has no colon in it and does not begin with #")
    value = secret.value.hex() if secret.kdf is Kdf.MIKANET else secret.value.decode()
    return f"{name}:{secret.kdf.value}:{value}"


def parse_users(path: str, content: bytes, kdf: Kdf) -> dict[str, Secret]:
    """The users of a file that can log in by ``kdf``.

    :param path: for messages.
    :raises ConfigError: if a line is not of that form, or there is no user.
    """
    users: dict[str, Secret] = {}
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        way, _, value = rest.partition(":")
        try:
            secret = _secret(Kdf(way), value)
            user = normal_user(name)
        except (ValueError, ConfigError):
            raise ConfigError(f"line {number} of {path} is none of mikanet passwd") from None
        if user in users:
            raise ConfigError(f"line {number} of {path} names a user for the second time")
        users[user] = secret
    usable = {name: secret for name, secret in users.items() if secret.kdf is kdf}
    if not usable:
        raise ConfigError(f"{path} has no user: mikanet passwd NAME --password-file FILE prints a line for it")
    return usable


def _secret(kdf: Kdf, value: str) -> Secret:
    if kdf is Kdf.DRAFT:
        if not value:
            raise ValueError("no password")
        return Secret(kdf, value.encode())
    raw = bytes.fromhex(value)
    if len(raw) != KEY_SIZE:
        raise ValueError("not 32 bytes")
    return Secret(kdf, raw)
