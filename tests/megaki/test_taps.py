"""The command lines of server and client, and the services that they make."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.crypto import rsa_oaep
from mikanet.megaki import service, tap_client, tap_server
from mikanet.service.secret_files import write_private_file
from tests.megaki.golden import SERVER_KEY, VECTORS


class TapTestCase(SynchronousTestCase):
    """Files for command lines."""

    def setUp(self) -> None:
        """A folder with keys and a script."""
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        write_private_file(self.folder / "key", rsa_oaep.private_to_pem(SERVER_KEY))
        write_private_file(self.folder / "locked", VECTORS["server_private_key_pem_encrypted"].encode())
        write_private_file(self.folder / "pass", VECTORS["server_private_key_passphrase"].encode() + b"\n")
        (self.folder / "open").write_bytes(rsa_oaep.private_to_pem(SERVER_KEY))
        (self.folder / "open").chmod(0o644)
        (self.folder / "cert").write_bytes(rsa_oaep.public_to_raw(SERVER_KEY.public_key()))
        (self.folder / "worker.py").write_text("def on_handle(request): return request\n")

    def words(self, **changes: str | None) -> list[str]:
        """A command line: the good one, with changes (None leaves an option out)."""
        chosen = {**self.good(), **{name.replace("_", "-"): value for name, value in changes.items()}}
        return [word for name, value in chosen.items() if value is not None for word in (f"--{name}", value)]

    def good(self) -> dict[str, str]:
        """Options that are right."""
        raise NotImplementedError

    def complaint(self, options: Any, words: list[str]) -> str:
        """The one line that a wrong command line gives."""
        with self.assertRaises(SystemExit) as caught:
            options.parseOptions(words)
        text = str(caught.exception)
        self.assertNotIn("\n", text)
        return text


class ServerTests(TapTestCase):
    """twistd megaki-server."""

    def good(self) -> dict[str, str]:
        """See :class:`TapTestCase`."""
        return {
            "listen": "tcp:6363:interface=127.0.0.1",
            "key": str(self.folder / "key"),
            "worker": f"python:{self.folder / 'worker.py'}",
            "state-dir": str(self.folder / "state"),
            "syn-rate": "0",
        }

    def test_good(self) -> None:
        """All options become settings; the original's encrypted key is read with its passphrase."""
        options = tap_server.Options()
        options.parseOptions(
            self.words(key=str(self.folder / "locked"), passphrase_file=str(self.folder / "pass"), workers="7")
        )
        settings = options.settings
        self.assertEqual(settings.key.private_numbers(), SERVER_KEY.private_numbers())
        self.assertEqual((settings.pool.size, settings.syn_rate, settings.worker.uid), (7, 0, None))
        self.assertTrue(60 <= settings.refusal_time <= 90)
        self.assertNotIn("key=<", repr(settings))

    def test_mistakes(self) -> None:
        """Each mistake is one line that names it."""
        for changes, word in (
            ({"listen": None}, "--listen"),
            ({"key": None}, "--key"),
            ({"key": "/not/there"}, "/not/there"),
            ({"key": str(self.folder / "open")}, "chmod 600"),
            ({"key": str(self.folder / "locked")}, "passphrase"),
            ({"worker": None}, "--worker"),
            ({"worker": "perl:x"}, "php:FILE"),
            ({"workers": "0"}, "--workers"),
            ({"syn-rate": "many"}, "--syn-rate"),
            ({"allow-egress": "10.0.0.0/8"}, "opens no connections"),
            ({"deny-egress": "10.0.0.0/8"}, "opens no connections"),
        ):
            renamed = {name.replace("-", "_"): value for name, value in changes.items()}
            self.assertIn(word, self.complaint(tap_server.Options(), self.words(**renamed)))

    def test_uid_needs_root(self) -> None:
        """Another user for workers needs a server that runs as root."""
        self.patch(os, "geteuid", lambda: 1000)
        self.assertIn("root", self.complaint(tap_server.Options(), self.words(worker_uid="65534")))
        options = tap_server.Options()
        options.parseOptions(self.words(worker_uid="1000"))
        self.assertEqual(options.settings.worker.uid, 1000)

    def test_service(self) -> None:
        """The service listens, starts its pool and ends everything again."""
        options = tap_server.Options()
        options.parseOptions(self.words())
        started: list[str] = []
        made = tap_server.makeService(options, MemoryReactorClock())
        assert isinstance(made, service.MegakiServerService)
        self.patch(made.pool, "start", lambda: started.append("pool"))
        made._threads.start = lambda: started.append("threads")  # type: ignore[method-assign]
        made._threads.stop = lambda: started.append("no threads")  # type: ignore[method-assign]
        made.startService()
        self.assertEqual(started, ["threads", "pool"])
        stopped = made.stopService()
        made._reactor.advance(1)
        self.successResultOf(stopped)
        self.assertEqual(started[-1], "no threads")


class ClientTests(TapTestCase):
    """twistd megaki-client."""

    def good(self) -> dict[str, str]:
        """See :class:`TapTestCase`."""
        return {
            "server": "tcp:127.0.0.1:6363",
            "server-key": str(self.folder / "cert"),
            "listen-http": "tcp:8080:interface=127.0.0.1",
        }

    def test_good(self) -> None:
        """All options become settings."""
        options = tap_client.Options()
        options.parseOptions(self.words(warm_sessions="3"))
        self.assertEqual(options.settings.warm, 3)
        self.assertEqual(options.settings.server_key.public_numbers(), SERVER_KEY.public_key().public_numbers())
        self.assertIsInstance(tap_client.makeService(options, MemoryReactorClock()), service.DrainingService)

    def test_mistakes(self) -> None:
        """Each mistake is one line that names it; without a pinned key there is no start (K6)."""
        for changes, word in (
            ({"server": None}, "--server"),
            ({"server_key": None}, "--server-key"),
            ({"server_key": "/not/there"}, "/not/there"),
            ({"server_key": str(self.folder / "worker.py")}, "server.cert"),
            ({"listen_http": None}, "--listen-http"),
            ({"listen_http": "nonsense:1"}, "--listen-http"),
            ({"warm_sessions": "17"}, "--warm-sessions"),
        ):
            self.assertIn(word, self.complaint(tap_client.Options(), self.words(**changes)))
