"""What one SYN can cost a Megaki server: RSA operations and bytes, counted."""

from __future__ import annotations

import os
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mikanet.crypto import rsa_oaep
from mikanet.megaki import yami
from mikanet.megaki.wire import PacketReader, Syn
from mikanet.megaki.yami import ClientYami, answer_syn
from tests.megaki.golden import CLIENT_KEY, SERVER_KEY


class SynTests(SynchronousTestCase):
    """A good SYN and its answer."""

    def test_operations(self) -> None:
        """A good SYN costs two private operations and one public one; one spoilt anywhere costs no more, and no answer."""
        counted: dict[str, int] = {"decrypt": 0, "encrypt": 0}

        def counting(name: str) -> Any:
            original = getattr(rsa_oaep, name)

            def call(*arguments: Any) -> Any:
                counted[name] += 1
                return original(*arguments)

            return call

        for name in counted:
            self.patch(yami.rsa_oaep, name, counting(name))
        data = ClientYami(os.urandom).connect(SERVER_KEY.public_key(), CLIENT_KEY)
        counted.update(decrypt=0, encrypt=0)
        answer = answer_syn(SERVER_KEY, self.syn(data), os.urandom)
        self.assertEqual(counted, {"decrypt": 2, "encrypt": 1})
        self.assertLess(len(answer.packet), len(data))
        for at in range(20, len(data), 13):
            counted.update(decrypt=0, encrypt=0)
            spoilt = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            self.assertRaises(yami.RemoteProtocolError, answer_syn, SERVER_KEY, self.syn(spoilt), os.urandom)
            self.assertLessEqual(counted["decrypt"], 2)
            self.assertEqual(counted["encrypt"], 0)

    @staticmethod
    def syn(data: bytes) -> Syn:
        """The packet in these bytes."""
        reader = PacketReader(1 << 20)
        reader.feed(data)
        packet = reader.next(yami._SERVER_TAKES[yami.State.NEW])
        assert isinstance(packet, Syn)
        return packet
