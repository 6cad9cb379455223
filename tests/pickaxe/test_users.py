"""Tests of mikanet.pickaxe.users."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import ConfigError
from mikanet.pickaxe.keys import Kdf, Secret
from mikanet.pickaxe.users import format_user, parse_users

LINE = "alice:mikanet:" + "ab" * 32


class UsersTests(SynchronousTestCase):
    """The file of users."""

    def test_both_ways(self) -> None:
        """A line that was written is read again; comments and empty lines are skipped."""
        line = format_user("alice", Secret(Kdf.MIKANET, b"\xab" * 32))
        self.assertEqual(line, LINE)
        content = f"# users\n\n{line}\nbob:draft:a:pass:word\n".encode()
        self.assertEqual(parse_users("f", content, Kdf.MIKANET), {"alice": Secret(Kdf.MIKANET, b"\xab" * 32)})
        self.assertEqual(parse_users("f", content, Kdf.DRAFT), {"bob": Secret(Kdf.DRAFT, b"a:pass:word")})

    def test_mistakes(self) -> None:
        """Each has its line number, and none of the secret."""
        for content in (
            b"alice\n",
            b"alice:mikanet:xyz\n",
            b"alice:mikanet:abcd\n",
            b"alice:other:" + b"ab" * 32,
            b":mikanet:" + b"ab" * 32,
            b"bob:draft:\n",
        ):
            with self.assertRaises(ConfigError) as caught:
                parse_users("f", b"#\n" + content, Kdf.MIKANET)
            self.assertEqual(str(caught.exception), "line 2 of f is none of mikanet passwd")
        for content, text in (
            (f"{LINE}\n{LINE}\n".encode(), "line 2 of f names a user for the second time"),
            (b"\xff", "f is not UTF-8 text"),
            (b"", "f has no user: mikanet passwd NAME --password-file FILE prints a line for it"),
        ):
            with self.assertRaises(ConfigError) as caught:
                parse_users("f", content, Kdf.MIKANET)
            self.assertEqual(str(caught.exception), text)

    def test_names_that_no_line_can_hold(self) -> None:
        """A colon, or a first character that makes a comment."""
        for name in ("a:b", "#a"):
            with self.assertRaises(ConfigError):
                format_user(name, Secret(Kdf.MIKANET, bytes(32)))
