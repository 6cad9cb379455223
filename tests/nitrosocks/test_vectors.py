"""Tests of both links against golden vectors that an independent program made."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mikanet.nitrosocks.client_link import ClientLink
from mikanet.nitrosocks.link import KeysChanged, Released, SessionOpened
from mikanet.nitrosocks.server_link import ServerLink
from mikanet.nitrosocks.wire import EncryptType
from tests.nitrosocks.golden import FILE, K0, PUBLIC, Script, client_config, number, realm, server_config
from tests.support.feeding import fragmentations


def values(part: dict[str, str]) -> dict[str, bytes]:
    """A part of a vector as bytes."""
    return {name: bytes.fromhex(text) for name, text in part.items()}


class GoldenTests(SynchronousTestCase):
    """Login, data, refresh, heartbeat, reconnection and release, byte for byte."""

    def both(self, vector: dict[str, Any]) -> list[tuple[bytes, bytes]]:
        """Play a vector's connections: what client and server sent on each."""
        secrets, login, again = (values(vector[part]) for part in ("secrets", "login", "reconnection"))
        encrypt_type = EncryptType(vector["encrypt_type"])
        authority = realm()
        blocks = [login["challenge_block"], again["challenge_block"]]

        def server(part: dict[str, bytes], key: bytes, *more: bytes) -> ServerLink:
            random = Script(
                [part["server_salt"], number(0), part["r1"], part["token_temp"], number(7), part["pad"], key]
            )
            random._values += more
            config = server_config(
                random,
                encrypt=lambda text: blocks.pop(0),
                authority=authority,
                encrypt_type=encrypt_type,
                version=1 if vector["version_field"] else None,
                wait_first=True,
            )
            return ServerLink(config, 0.0)

        def client(part: dict[str, bytes], junk: int, resume: Any = None, *more: bytes) -> ClientLink:
            random = Script([part["client_salt"], number(40 - 16), bytes([junk]), part["junk"], number(0), *more])
            return ClientLink(client_config(random), 0.0, resume)

        near = client(login, 0xA5, None, secrets["r3"])
        far = server(login, secrets["session_key_0"], secrets["session_key_1"])
        sent = [bytearray(), bytearray()]

        def carry() -> None:
            while True:
                up, down = near.take_output(), far.take_output()
                if not up and not down:
                    return
                sent[0] += up
                sent[1] += down
                far.receive(up, 0.0)
                near.receive(down, 0.0)

        carry()
        self.assertIsInstance(far.events[0], SessionOpened)
        near.send_data(b"ping")
        carry()
        far.send_data(b"pong")
        carry()
        far.refresh(0.0)
        carry()
        near.send_data(b"more")
        carry()
        self.assertEqual([each for each in far.events if isinstance(each, bytes)], [b"ping", b"more"])
        self.assertEqual([each for each in near.events if isinstance(each, bytes)], [b"pong"])
        result = [(bytes(sent[0]), bytes(sent[1]))]

        assert near.session is not None
        assert far.session is not None
        authority.remember(far.session)
        self.assertEqual(near.session.chain.newest_first(), [secrets["session_key_1"]])
        near = client(again, 0x5A, (near.session, secrets["session_key_1"]))
        far = server(again, secrets["session_key_2"], secrets["r2"])
        sent = [bytearray(), bytearray()]
        carry()
        far.send_data(b"again")
        carry()
        near.send_data(b"here")
        carry()
        near.disconnect(0.0)
        carry()
        self.assertEqual(far.events[-1], Released(clean=True))
        self.assertEqual(near.events[-1], Released(clean=True))
        self.assertIn(KeysChanged(), far.events)
        return [*result, (bytes(sent[0]), bytes(sent[1]))]

    def test_every_byte(self) -> None:
        """Both links send exactly the bytes of the vectors, for both ciphers, with the version field and without."""
        for vector in FILE["vectors"]:
            expected = [
                tuple(bytes.fromhex(vector[part][side]) for side in ("client", "server"))
                for part in ("login", "reconnection")
            ]
            self.assertEqual(self.both(vector), expected)

    def test_frame_key(self) -> None:
        """K0 is that of the vectors, and both halves of the pair give it."""
        self.assertEqual(K0.hex(), FILE["vectors"][0]["login"]["k0"])
        self.assertEqual(PUBLIC.key_size, 2048)

    def test_any_fragmentation(self) -> None:
        """The server takes the client's bytes in any pieces, and says the same."""
        vector = FILE["vectors"][0]
        secrets, login = values(vector["secrets"]), values(vector["login"])
        outputs = set()
        for pieces in fragmentations(login["client"], most_cuts=60):
            random = Script(
                [
                    *(login["server_salt"], number(0), login["r1"], login["token_temp"], number(7), login["pad"]),
                    *(secrets["session_key_0"], secrets["session_key_1"]),
                ]
            )
            far = ServerLink(server_config(random, encrypt=lambda text: login["challenge_block"]), 0.0)
            output = b""
            refreshed = False
            for piece in pieces:
                while piece:
                    # The refresh came after "ping", which stands at the same place in every run.
                    before = 16 + 3 + 40 + 3 + 48 + 3 + 20
                    left = before - getattr(self, "_fed", 0) if not refreshed else len(piece)
                    part, piece = piece[:left], piece[left:]
                    self._fed = getattr(self, "_fed", 0) + len(part)
                    far.receive(part, 0.0)
                    output += far.take_output()
                    if not refreshed and self._fed == before:
                        refreshed = True
                        far.send_data(b"pong")
                        far.refresh(0.0)
                        output += far.take_output()
            del self._fed
            outputs.add(output)
            self.assertEqual([each for each in far.events if isinstance(each, bytes)], [b"ping", b"more"])
        self.assertEqual(outputs, {login["server"]})
