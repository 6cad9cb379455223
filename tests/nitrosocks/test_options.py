"""Tests of mikanet.nitrosocks.options and of both command lines: files that were mixed up are named."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mikanet.cli import keygen
from mikanet.nitrosocks import tap_client, tap_server


class MistakeTests(SynchronousTestCase):
    """Command lines of which one word is wrong."""

    def setUp(self) -> None:
        """Keys, tokens and a certificate."""
        self.folder = Path(self.mktemp())
        self.patch(sys, "stdout", io.StringIO())
        options = keygen.Options()
        options.parseOptions(["nitrosocks", str(self.folder), "--name", "localhost"])
        keygen.run(options)

    def said(self, client: bool, **changes: str) -> str:
        """What is said of the command line with these changes; a file is named by its name in the folder."""
        good = {"state-dir": self.mktemp()}
        if client:
            good |= {"server": "tcp:localhost:443", "server-name": "localhost", "socks": "tcp:1080"}
            files = {"private-key": "client.key", "token-file": "token", "tls-verify": "server.crt"}
        else:
            good |= {"listen": "tcp:443"}
            files = {"certificate": "server.pem", "public-key": "server.pub", "tokens": "tokens"}
        for name, value in changes.items():
            owner = files if name.replace("_", "-") in files else good
            owner[name.replace("_", "-")] = value
        values = good | {name: str(self.folder / file) for name, file in files.items()}
        options = tap_client.Options() if client else tap_server.Options()
        try:
            options.parseOptions([f"--{name}={value}" for name, value in values.items()])
        except SystemExit as end:
            self.assertNotIn("\n", str(end.code))
            return str(end.code)
        return ""

    def test_right_ones(self) -> None:
        """What keygen made is taken."""
        self.assertEqual(self.said(client=True), "")
        self.assertEqual(self.said(client=False), "")

    def test_tls_in_tls(self) -> None:
        """An endpoint of TLS is refused: NitroSocks makes its own."""
        self.assertIn("give tcp:443", self.said(client=False, listen="ssl:443:privateKey=x"))
        self.assertIn("give tcp:HOST:443", self.said(client=True, server="tls:localhost:443"))
        self.assertIn("give tcp:HOST:443", self.said(client=True, server="ssl:localhost:443"))

    def test_mixed_up_files(self) -> None:
        """A file in the place of another one: what it is, or what it is not."""
        self.assertIn("is a PEM file, not a token", self.said(client=True, token_file="client.key"))
        self.assertIn("blanks in it", self.said(client=True, token_file="tokens"))
        self.assertIn("no private key in PEM", self.said(client=True, private_key="server.pub"))
        self.assertIn("no certificate", self.said(client=True, tls_verify="client.key"))
        self.assertIn("nor a public key in PEM", self.said(client=False, public_key="client.key"))
        self.assertIn("is not a name and a token", self.said(client=False, tokens="token"))
        self.assertIn("no certificate", self.said(client=False, certificate="client.key"))
