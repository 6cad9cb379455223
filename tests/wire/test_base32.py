"""Base32: RFC 4648's vectors, any bytes against Python's own codec, and refusals."""

from __future__ import annotations

import base64
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import RemoteProtocolError
from mikanet.wire.base32 import ALPHABET, MAX_ENCODE, decode, encode, encoded_size

#: RFC 4648, section 10, BASE32-HEX, without padding.
RFC = {b"": b"", b"f": b"CO", b"fo": b"CPNG", b"foo": b"CPNMU", b"foob": b"CPNMUOG", b"fooba": b"CPNMUOJ1"}
RFC[b"foobar"] = b"CPNMUOJ1E8"


class Base32Tests(SynchronousTestCase):
    """Texts that survive DNS."""

    def test_rfc_vectors(self) -> None:
        """The RFC's examples, in either case."""
        for data, text in RFC.items():
            self.assertEqual(encode(data), text.lower())
            self.assertEqual(decode(text), data)
            self.assertEqual(decode(text.lower()), data)

    def test_every_length(self) -> None:
        """Python's codec and this one agree at every length there is."""
        chance = random.Random(1)
        for size in range(MAX_ENCODE + 1):
            data = chance.randbytes(size)
            expected = base64.b32hexencode(data).rstrip(b"=").lower()
            self.assertEqual(encode(data), expected)
            self.assertEqual(len(expected), encoded_size(size))

    @settings(deadline=None)
    @given(st.binary(max_size=MAX_ENCODE), st.randoms())
    def test_case_does_not_matter(self, data: bytes, chance: random.Random) -> None:
        """Whatever a resolver does to the case of letters, the bytes stay."""
        text = bytes(chance.choice((c, bytes([c]).upper()[0])) for c in encode(data))
        self.assertEqual(decode(text), data)

    def test_refuses(self) -> None:
        """Other characters (those that Python's int() would take, too), impossible lengths and bits left over."""
        for text in (b"w0", b"0_", b"+0", b" 0", b"0-", b"0x11", b"0", b"000", b"000000", b"cp=", b"c1", b"\xff\xff"):
            self.assertRaises(RemoteProtocolError, decode, text)

    def test_mutations(self) -> None:
        """10,000 changed texts are decoded to what encodes to the same text, or refused."""
        chance = random.Random(2)
        for _ in range(10_000):
            text = bytearray(encode(chance.randbytes(chance.randrange(1, 40))))
            for _ in range(chance.randrange(1, 4)):
                text[chance.randrange(len(text))] = chance.randrange(256)
            if chance.random() < 0.3:
                del text[chance.randrange(len(text)) :]
            try:
                data = decode(bytes(text))
            except RemoteProtocolError:
                continue
            self.assertEqual(encode(data), bytes(text).lower())

    def test_alphabet(self) -> None:
        """32 characters, all of them legal in host names."""
        self.assertEqual(len(set(ALPHABET)), 32)
        self.assertTrue(ALPHABET.isalnum())
        self.assertEqual(ALPHABET, ALPHABET.lower())
