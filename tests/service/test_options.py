"""Command lines: every mistake is one line (the contract of ``docs/reference/options.rst``)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mikanet.cli.demo import Options as DemoOptions
from mikanet.mika import tap_client, tap_server
from mikanet.mika.session import Profile
from mikanet.net.endpoint import TcpEndpoint


class CommandLineTestCase(SynchronousTestCase):
    """Files and helpers for command lines."""

    def setUp(self) -> None:
        """A password file and a state folder."""
        self.password = self.file("a password of some length\n")
        self.state = self.mktemp()

    def file(self, content: str, mode: int = 0o600) -> str:
        """A file with that content and mode."""
        path = self.mktemp()
        Path(path).write_text(content)
        os.chmod(path, mode)
        return path

    def server(self, *words: str) -> tap_server.Options:
        """The server's options: good ones where the words say nothing else."""
        options = tap_server.Options()
        good = {"--listen": "tcp:8388", "--password-file": self.password, "--state-dir": self.state}
        options.parseOptions(with_good(good, words))
        return options

    def client(self, *words: str) -> tap_client.Options:
        """The client's options, likewise."""
        options = tap_client.Options()
        good = {"--server": "tcp:host:8388", "--password-file": self.password}
        options.parseOptions(with_good(good, words))
        return options

    def assert_mistake(self, call: Any, words: list[str], naming: str) -> None:
        """The command line is refused in one line that names the thing."""
        with self.assertRaises(SystemExit, msg=words) as caught:
            call(*words)
        self.assertIsInstance(caught.exception.code, str)
        self.assertIn(naming, caught.exception.code)
        self.assertNotIn("\n", caught.exception.code)


def with_good(good: dict[str, str], words: tuple[str, ...]) -> list[str]:
    """The words, and the good options that they do not give."""
    left = [each for name, value in good.items() if name not in words for each in (name, value)]
    return [*left, *words]


class ServerOptionsTests(CommandLineTestCase):
    """``twistd mika-server``."""

    def test_values(self) -> None:
        """What is given arrives as values."""
        settings = self.server(
            "--allow-egress", "127.0.0.0/8:80-90", "--deny-egress", "8.8.8.8", "--refusal-time", "2.5",
            "--drain-time", "0", "--max-connections", "7", "--max-unverified", "8", "--profile", "go",
            "--method", "aes-128-cfb", "--memory", "3", "--verbose",
        ).settings  # fmt: skip
        self.assertEqual((settings.refusal_time, settings.drain_time, settings.budget.limit), (2.5, 0, 3 << 20))
        self.assertEqual((settings.limits.connections, settings.limits.per_user, settings.limits.unverified), (7, 7, 8))
        self.assertEqual((settings.keys.profile, len(settings.keys.up)), (Profile.GO, 16))
        self.assertTrue(settings.log_destinations)

    def test_defaults(self) -> None:
        """Without options: the document's profile, a refusal time of this server, no egress rules."""
        settings = self.server().settings
        self.assertEqual(settings.keys.profile, Profile.SPEC)
        self.assertTrue(60 <= settings.refusal_time <= 90)
        self.assertEqual(self.server().settings.refusal_time, settings.refusal_time)
        self.assertEqual((settings.policy.allow, settings.policy.deny), ((), ()))
        self.assertEqual(settings.limits.connections, 10_000)

    def test_mistakes(self) -> None:
        """Each is one line that names the thing."""
        readable = self.file("a password of some length", 0o644)
        weak = self.file("weak")
        for words, naming in (
            (["--listen", ""], "--listen is missing"),
            (["--listen", "tcp"], "--listen 'tcp'"),
            (["--listen", "tcp:x"], "--listen 'tcp:x'"),
            (["--listen", "nonsense:1"], "--listen 'nonsense:1'"),
            (["--listen", "obfs-http:tcp\\:8388:url=x"], "'url'"),
            (["--listen", "obfs-http:tcp:8388"], "colons escaped"),
            (["--listen", "obfs-http"], "colons escaped"),
            (["--password-file", ""], "--password-file is missing"),
            (["--password-file", "/nonexistent"], "/nonexistent"),
            (["--password-file", readable], f"chmod 600 {readable}"),
            (["--password-file", weak], weak),
            (["--profile", "x"], "'x'"),
            (["--method", "rc4"], "'rc4'"),
            (["--method", "aes-128-cfb"], "--profile go"),
            (["--allow-egress", "10.0.0.0/40"], "--allow-egress: '10.0.0.0/40'"),
            (["--allow-egress", "10.1.2.3/8"], "write 10.0.0.0/8 for the network, or 10.1.2.3/32"),
            (["--deny-egress", "[2001:db8::7/32]:80"], "write 2001:db8::/32 for the network, or 2001:db8::7/128"),
            (["--listen", "tcp:1", "--listen", "tcp:2"], "--listen is given 2 times"),
            (["--deny-egress", "x"], "'x'"),
            (["--refusal-time", "0"], "--refusal-time"),
            (["--refusal-time", "nan"], "--refusal-time"),
            (["--drain-time", "x"], "--drain-time"),
            (["--max-connections", "0"], "--max-connections"),
            (["--max-per-user", "x"], "--max-per-user"),
            (["--memory", "-1"], "--memory"),
            (["--state-dir", "/proc/x"], "--state-dir"),
            (["--unknown"], "--unknown not recognized; --help lists"),
            (["--pasword-file", "x"], "did you mean --password-file?"),
            (["--listen"], "--listen"),
            (["stray"], "'stray'"),
        ):
            self.assert_mistake(self.server, words, naming)

    def test_no_signatures(self) -> None:
        """What is wrong with an endpoint string is said in the user's words, not in those of Python's functions."""
        for endpoint, meaning in (
            ("tcp", "port is missing"),
            ("tcp:abc", "'abc' is no number"),
            ("tcp:80:bar=1", "it takes no 'bar='"),
            ("tcp:1:2:3:4", "too many parts"),
            ("foo:1", "there is no endpoint type 'foo'"),
            ("ssl:443:privateKey=/not/there.pem", "/not/there.pem: No such file or directory"),
            ("unix:/tmp/x:mode=x", "cannot be understood"),
        ):
            with self.assertRaises(SystemExit) as caught:
                self.server("--listen", endpoint)
            said = str(caught.exception.code)
            self.assertIn(f"--listen '{endpoint}' is not an endpoint like tcp:8388: ", said)
            self.assertIn(meaning, said)
            for word in ("argument", "_parse", "()", "literal", "Errno"):
                self.assertNotIn(word, said)

    def test_insecure_ok(self) -> None:
        """A weak password is taken when that is asked for (X7)."""
        self.server("--password-file", self.file("weak"), "--insecure-ok")


class ClientOptionsTests(CommandLineTestCase):
    """``twistd mika-client``."""

    def test_doors(self) -> None:
        """Every kind of door, each as often as wanted."""
        front = self.client(
            "--socks", "tcp:1080:interface=127.0.0.1", "--socks", "tcp:1081", "--http", "tcp:3128",
            "--forward", "tcp:2222=host:22", "--forward", "tcp:2223:interface=127.0.0.1=[2001:db8::1]:22",
            "--forward-udp", "127.0.0.1:5353=9.9.9.9:53", "--forward-udp", "[::1]:5353=9.9.9.9:53",
            "--proxy-auth", self.file("ann:secret\n"),
        ).front  # fmt: skip
        self.assertEqual(
            [(kind, text) for kind, text, _ in front.doors][1:], [("socks", "tcp:1081"), ("http", "tcp:3128")]
        )
        self.assertEqual(
            [(text, str(to)) for text, _, to in front.forwards],
            [("tcp:2222", "host:22"), ("tcp:2223:interface=127.0.0.1", "[2001:db8::1]:22")],
        )
        self.assertEqual([str(local) for local, _ in front.udp_forwards], ["127.0.0.1:5353", "[::1]:5353"])
        self.assertIsNotNone(front.credentials)

    def test_mistakes(self) -> None:
        """Each is one line that names the thing."""
        door = ["--socks", "tcp:1080"]
        for words, naming in (
            ([], "no front door"),
            (["--socks", "x:1"], "--socks 'x:1'"),
            (["--http", "tcp:a"], "--http 'tcp:a'"),
            (["--forward", "tcp:2222"], "--forward"),
            (["--forward", "=host:22"], "--forward"),
            (["--forward", "tcp:2222=host"], "'host'"),
            (["--forward", "tcp:2222=host:0"], "--forward: '0'"),
            (["--forward", "tcp:2222=a b:1"], "--forward: 'a b'"),
            (["--forward-udp", "127.0.0.1:1=host:1", "--profile", "go"], "--profile go"),
            (["--server", "obfs-http:tcp:host:1", *door], "colons escaped"),
            (["--forward", "x:2222=host:1"], "--forward 'x:2222'"),
            (["--forward-udp", "127.0.0.1:1"], "--forward-udp"),
            (["--forward-udp", "name:1=host:1"], "IP address"),
            (["--proxy-auth", "/nonexistent", *door], "/nonexistent"),
            (["--proxy-auth", self.file("ann"), *door], "line 1"),
            (["--server", "", *door], "--server is missing"),
            (["--server", "tcp:host", *door], "--server 'tcp:host'"),
            (["--server", "tcp:host:99999", *door], "99999"),
            (["--password-file", "/nonexistent", *door], "/nonexistent"),
            (["--profile", "x", *door], "'x'"),
            (["--drain-time", "-1", *door], "--drain-time"),
        ):
            self.assert_mistake(self.client, words, naming)

    def test_server_by_name(self) -> None:
        """A bare tcp: server is reached over all its addresses, IPv6 among them."""
        for text in ("tcp:name.example:8388", "host:name.example:8388"):
            self.assertIsInstance(self.client("--server", text, "--socks", "tcp:1080").server, TcpEndpoint)

    def test_passwords_reach_no_repr(self) -> None:
        """Neither the options' values nor the doors show a secret (X10)."""
        options = self.client("--socks", "tcp:1080", "--proxy-auth", self.file("ann:hidden-words\n"))
        text = repr((dict(options), options.front, options.derived))
        self.assertIsNone(re.search("a password of|hidden-words", text))


class DemoOptionsTests(CommandLineTestCase):
    """``mikanet demo``."""

    def demo(self, *words: str) -> DemoOptions:
        """The demo's options."""
        options = DemoOptions()
        options.parseOptions(words)
        return options

    def test_values_and_mistakes(self) -> None:
        """How much to download."""
        self.assertEqual(self.demo().megabytes, 256)
        self.assertEqual(self.demo("--megabytes", "5", "--once").megabytes, 5)
        self.assert_mistake(self.demo, ["--megabytes", "0"], "--megabytes")
