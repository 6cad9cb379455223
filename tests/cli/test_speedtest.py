"""The two ends of a measurement, without a tunnel."""

from __future__ import annotations

import io
import socket
import threading

from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.cli.speedtest import Meter, Options
from mikanet.errors import RemoteProtocolError


class OptionTests(SynchronousTestCase):
    """Command lines."""

    def test_mistakes(self) -> None:
        """One line that names what is missing or wrong."""
        for words, naming in (
            ([], "--target is missing"),
            (["--target", "a:1"], "--socks is missing"),
            (["--serve", "nonsense"], "HOST:PORT"),
            (["--serve", "127.0.0.1:1", "--seconds", "61"], "--seconds"),
        ):
            with self.assertRaises(SystemExit) as caught:
                Options().parseOptions(words)
            self.assertIn(naming, str(caught.exception.code))

    def test_values(self) -> None:
        """What is given arrives."""
        options = Options()
        options.parseOptions(["--socks", "127.0.0.1:1080", "--target", "[::1]:5201", "--seconds", "0.5"])
        self.assertEqual((options.door, options.where), (Address("127.0.0.1", 1080), Address("::1", 5201)))
        self.assertEqual(options.seconds, 0.5)


class DoorTests(SynchronousTestCase):
    """Doors that do not do what is asked."""

    def refusal(self, *answers: bytes) -> str:
        """What the user reads when a door gives these answers."""
        with socket.create_server(("127.0.0.1", 0)) as door:

            def serve() -> None:
                connection, _ = door.accept()
                with connection:
                    for answer in answers:
                        connection.recv(300)
                        connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(300)

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            meter = Meter(Address(*door.getsockname()), Address("192.0.2.1", 1), 1, io.StringIO())
            with self.assertRaises(RemoteProtocolError) as caught:
                meter.measure()
            thread.join(5)
        return str(caught.exception)

    def test_refusals(self) -> None:
        """The door's code, in words that say what to do."""
        self.assertIn("wants a password", self.refusal(b"\x05\x02"))
        self.assertIn("--allow-egress", self.refusal(b"\x05\x00", b"\x05\x02\x00\x01" + bytes(6)))
        self.assertIn("--serve there", self.refusal(b"\x05\x00", b"\x05\x05\x00\x01" + bytes(6)))
        self.assertIn("with a name", self.refusal(b"\x05\x00", b"\x05\x00\x00\x03" + bytes(6)))
        self.assertIn("closed the connection", self.refusal(b"\x05"))
