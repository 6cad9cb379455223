"""``mikanet genkey``: a new secret on standard output."""

from __future__ import annotations

import secrets

from mikanet.service.options import Options as BaseOptions


class Options(BaseOptions):
    """Options of ``mikanet genkey``."""

    command = "mikanet genkey"
    longdesc = "Prints a new 256-bit secret. Keep it in a file of mode 0600: (umask 077; mikanet genkey > FILE)"


def run(options: Options) -> int:
    """Print the secret."""
    print(new_secret())
    return 0


def new_secret() -> str:
    """256 random bits as 43 characters of letters, digits, ``-`` and ``_``."""
    return secrets.token_urlsafe(32)
