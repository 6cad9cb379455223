"""Secrets from files (X7)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mikanet.cli.genkey import new_secret
from mikanet.errors import ConfigError
from mikanet.service.secret_files import (
    is_weak,
    read_credentials,
    read_private_file,
    read_secret,
    write_private_file,
)

GOOD = b"a good secret of some length"


class SecretFileTests(SynchronousTestCase):
    """Files that hold secrets."""

    def file(self, content: bytes, mode: int = 0o600) -> str:
        """A file with that content and mode."""
        path = self.mktemp()
        Path(path).write_bytes(content)
        os.chmod(path, mode)
        return path

    def assert_mistake(self, call: object, *args: object, naming: str) -> None:
        """The call is refused in one line that names the thing."""
        with self.assertRaises(ConfigError) as caught:
            call(*args)  # type: ignore[operator]
        self.assertIn(naming, str(caught.exception))
        self.assertNotIn("\n", str(caught.exception))

    def test_first_line_is_the_secret(self) -> None:
        """The newline and everything after it do not belong to the secret; other spaces do."""
        for content in (GOOD, GOOD + b"\n", GOOD + b"\r\n", GOOD + b"\nmore\n"):
            self.assertEqual(read_secret(self.file(content)), GOOD)
        self.assertEqual(read_secret(self.file(b" " + GOOD + b" \n")), b" " + GOOD + b" ")

    def test_what_editors_make_of_it(self) -> None:
        """Byte order marks are no part of a secret, and UTF-16 is understood where it begins with one."""
        secret = "a secret of some length"
        for content in (
            b"\xef\xbb\xbf" + secret.encode() + b"\r\n",
            secret.encode("utf-16"),
            b"\xfe\xff" + (secret + "\r\nmore").encode("utf-16-be"),
        ):
            self.assertEqual(read_secret(self.file(content)), secret.encode())
        self.assertEqual(read_credentials(self.file(b"\xef\xbb\xbfalice:secret\n")), {"alice": "secret"})
        self.assertRaises(ConfigError, read_secret, self.file(b"\xff\xfe\x00\xd8x"))

    def test_others_may_not_read_it(self) -> None:
        """Any permission for group or others is refused, and the mend is named."""
        for mode in (0o604, 0o640, 0o660, 0o644, 0o620, 0o601):
            path = self.file(GOOD, mode)
            self.assert_mistake(read_secret, path, naming=f"chmod 600 {path}")
        self.assertEqual(read_secret(self.file(GOOD, 0o400)), GOOD)

    def test_unusable_files(self) -> None:
        """Missing, a folder, empty, too long: each is named."""
        self.assert_mistake(read_secret, "/nonexistent/secret", naming="/nonexistent/secret")
        self.assert_mistake(read_secret, os.getcwd(), naming=os.getcwd())
        self.assert_mistake(read_secret, self.file(b"\nsecond line"), naming="empty")
        self.assert_mistake(read_private_file, self.file(b"x" * 1024 * 1025), naming="too long")

    def test_weak_secrets(self) -> None:
        """Short, repetitive and well-known ones are refused unless that is asked for."""
        for weak in (
            b"short",
            b"x" * 40,
            b"abababababababababab",
            b"Password Password",
            b"correct horse battery staple",
        ):
            self.assert_mistake(read_secret, self.file(weak), naming="genkey")
            self.assertEqual(read_secret(self.file(weak), insecure_ok=True), weak)

    def test_new_secrets_are_strong(self) -> None:
        """What genkey makes is accepted, and never the same twice."""
        made = {new_secret() for _ in range(100)}
        self.assertEqual(len(made), 100)
        self.assertFalse(any(is_weak(each.encode()) or len(each) != 43 for each in made))

    def test_credentials(self) -> None:
        """user:password lines; comments and empty lines are skipped; a password may hold colons."""
        path = self.file(b"# people\nann:one:two\n\nbob:secret\n")
        self.assertEqual(read_credentials(path), {"ann": "one:two", "bob": "secret"})

    def test_bad_credentials(self) -> None:
        """A line of another form is named by its number."""
        for content, naming in (
            (b"ann", "line 1"),
            (b"ann:x\n:y\n", "line 2"),
            (b"ann:\n", "line 1"),
            (b"# nobody\n", "no user:password"),
            (b"a:" + b"x" * 256, "255 bytes"),
            (b"\xff:\xff", "UTF-8"),
        ):
            self.assert_mistake(read_credentials, self.file(content), naming=naming)
        self.assert_mistake(read_credentials, self.file(b"a:b", 0o644), naming="chmod")

    def test_written_files_are_private(self) -> None:
        """Written whole, mode 0600, also over an older file."""
        path = Path(self.mktemp())
        for content in (b"one", b"two"):
            write_private_file(path, content)
            self.assertEqual(path.read_bytes(), content)
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        self.assertEqual(os.listdir(path.parent), [path.name])
