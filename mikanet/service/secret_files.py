"""Secrets come from files that only their owner can read (X7)."""

from __future__ import annotations

import codecs
import errno
import os
import secrets
import stat
from pathlib import Path

from mikanet.errors import ConfigError

#: Shortest password that is accepted, in characters.
MIN_LENGTH = 16

_LARGEST_FILE = 1024 * 1024

#: How the names of files end that are being written.
TEMPORARY = ".new"

# Long enough for the length rule, and on every guesser's list all the same.
_BAD = frozenset(
    "".join(each.split())
    for each in (
        "password password",
        "passwordpassword1",
        "1234567890123456",
        "0123456789abcdef",
        "qwertyuiopasdfgh",
        "correct horse battery staple",
        "correcthorsebatterystaple",
        "changemechangeme",
        "letmeinletmeinletmein",
    )
)


def read_private_file(path: str) -> bytes:
    """A file that only its owner may read, at most 1 MiB.

    :raises ConfigError: if it cannot be read, or others can read it.
    """
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError(f"{path} is not a file")
            if mode & 0o077:
                raise ConfigError(f"{path} can be read by others: run chmod 600 {path}")
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    if len(content) > _LARGEST_FILE:
        raise ConfigError(f"{path} is far too long for a file of secrets")
    return content


def read_private_text(path: str) -> bytes:
    """A private file of text in UTF-8, whatever an editor made of it: without a byte order mark, and from UTF-16 with one.

    :raises ConfigError: as :func:`read_private_file`, and for UTF-16 that is none.
    """
    content = read_private_file(path)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return content.decode("utf-16").encode()
        except UnicodeError:
            raise ConfigError(f"{path} begins as UTF-16 and is none: save it as UTF-8") from None
    return content.removeprefix(codecs.BOM_UTF8)


def read_secret(path: str, insecure_ok: bool = False) -> bytes:
    """The secret in a file: its first line without the newline.

    :param insecure_ok: take weak secrets too.
    :raises ConfigError: if the file cannot be used or the secret is too easy to guess.
    """
    secret = read_private_text(path).split(b"\n", 1)[0].removesuffix(b"\r")
    if not secret:
        raise ConfigError(f"the first line of {path} is empty: mikanet genkey prints a good secret")
    if not insecure_ok and is_weak(secret):
        raise ConfigError(
            f"the secret in {path} is too easy to guess: mikanet genkey prints a good one, --insecure-ok takes this one"
        )
    return secret


def is_weak(secret: bytes) -> bool:
    """Whether a secret is shorter than 16 characters, made of very few different ones, or a well-known one."""
    text = secret.decode("utf-8", "replace")
    return len(text) < MIN_LENGTH or len(set(text)) < 5 or "".join(text.lower().split()) in _BAD


def read_credentials(path: str) -> dict[str, str]:
    """``user:password`` lines of a private file; empty lines and lines that begin with ``#`` are skipped.

    :raises ConfigError: if the file cannot be used or a line is not of that form.
    """
    credentials: dict[str, str] = {}
    try:
        lines = read_private_text(path).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        user, colon, password = line.partition(":")
        if not colon or not user or not password:
            raise ConfigError(f"line {number} of {path} is not user:password")
        if len(user.encode()) > 255 or len(password.encode()) > 255:
            raise ConfigError(f"line {number} of {path} is longer than SOCKS5 can carry (255 bytes each)")
        credentials[user] = password
    if not credentials:
        raise ConfigError(f"{path} has no user:password line")
    return credentials


def write_private_file(path: Path, content: bytes) -> None:
    """Create or replace a file that only its owner may read; never half-written, also when the machine crashes.

    Where others may write to the folder, nobody gets us to write through a link of theirs: the new file has a name that
    cannot be guessed, and takes the place of whatever was there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make sure that the new name survives a crash of the machine."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return  # a folder that we may write to and not read
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # a file system that does not know this
    finally:
        os.close(descriptor)


def read_own_file(path: Path) -> bytes | None:
    """A file of the state folder; None if there is none.

    :raises OSError: if it cannot be read, is a link or no file, or belongs to somebody who is neither we nor root.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
            raise PermissionError(errno.EPERM, "it is not a file that only we may write to")
        return file.read()
