"""Tests of mikanet.frontdoors.credentials."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mikanet.frontdoors.credentials import Credentials


class CredentialsTests(SynchronousTestCase):
    """Who may use a door."""

    def setUp(self) -> None:
        self.credentials = Credentials({"alice": "secret", "b\xfcrger": "gr\xfc\xdfe", "empty": ""})

    def test_right(self) -> None:
        """The right pairs are accepted, in UTF-8."""
        for user, password in ((b"alice", b"secret"), (b"b\xc3\xbcrger", b"gr\xc3\xbc\xc3\x9fe"), (b"empty", b"")):
            self.assertTrue(self.credentials.check(user, password))

    def test_wrong(self) -> None:
        """Everything else is not."""
        for user, password in (
            (b"alice", b"secreT"),
            (b"alice", b"secret "),
            (b"alice", b""),
            (b"empty", b"secret"),
            (b"bob", b"secret"),
            (b"", b""),
            (b"bob", bytes(32)),
        ):
            self.assertFalse(self.credentials.check(user, password))

    def test_repr_tells_nothing(self) -> None:
        """No name and no password is in the repr."""
        self.assertEqual(repr(self.credentials), "<Credentials of 3 users>")
