"""``mikanet keygen SYSTEM DIR``: the keys of a server, and what its clients need of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from mikanet.cli.genkey import new_secret
from mikanet.cli.words import WordsOptions as BaseOptions
from mikanet.crypto import rsa_oaep
from mikanet.errors import ConfigError
from mikanet.service.secret_files import read_secret, write_private_file


class Options(BaseOptions):
    """Options of ``mikanet keygen``."""

    command = "mikanet keygen"
    synopsis = "SYSTEM DIR [options]"
    longdesc = "Makes keys in DIR, which is created if it is not there. Files that exist are never replaced."

    optParameters: ClassVar[list[list[object]]] = [
        ["passphrase-file", None, None, "megaki: file whose first line becomes the private key's passphrase"],
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
    """``server.pub`` and ``tokens`` for the server, ``client.key`` and ``token`` for the client; all of them secret."""
    public, tokens, private, token = _new_files(options.folder, "server.pub", "tokens", "client.key", "token")
    key = rsa_oaep.generate()
    secret = new_secret()
    write_private_file(public, rsa_oaep.public_to_pem(key.public_key()))
    write_private_file(tokens, f"client {secret}\n".encode())
    write_private_file(private, rsa_oaep.private_to_pem(key))
    write_private_file(token, f"{secret}\n".encode())
    return [public, tokens, private, token]


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
