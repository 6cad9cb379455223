"""paqet's messages against the bytes of the real programs, and against everything else."""

from __future__ import annotations

import itertools
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.errors import LocalProtocolError, RemoteProtocolError
from mikanet.paqet import gob, wire
from mikanet.paqet.wire import Dialect, Message, MessageError, MessageReader, MessageType
from mikanet.wire.tcp import parse_flags
from tests.support.feeding import fragmentations, mutations
from tests.support.vectors import load

VECTORS = load("paqet/messages.json")
ALL = frozenset(Dialect)
#: What each client of the three programs writes for these descriptions.
FLAGS = {
    "PTCPF [PA]": ("PA",),
    "PTCPF [S]": ("S",),
    "PTCPF [PA A SA]": ("PA", "A", "SA"),
    "PTCPF [FSRPAUECN]": ("FSRPAUECN",),
    "PTCPF [F S R P A U E C N]": tuple("FSRPAUECN"),
    "PTCPF []": (),
}


def expected(vector: dict[str, Any]) -> Message:
    """The message of a vector."""
    kind = MessageType(vector["type"])
    if "host" in vector:
        return Message(kind, Address(vector["host"], vector["port"]))
    return Message(kind, flags=tuple(map(parse_flags, FLAGS.get(vector["desc"], ()))))


def all_messages() -> list[tuple[Dialect, bytes, Message]]:
    """Every vector of every dialect."""
    return [
        (dialect, bytes.fromhex(vector["wire"]), expected(vector))
        for dialect in Dialect
        for vector in VECTORS[dialect.value]
    ]


def read(pieces: list[bytes], dialects: frozenset[Dialect] = ALL) -> tuple[Message, Dialect | None, bytes] | None:
    """What a reader makes of pieces: message, dialect and what came behind it."""
    reader = MessageReader(dialects)
    message, rest = None, b""
    for piece in pieces:
        if message is None:
            message = reader.feed(piece)
            rest = reader.rest
        else:
            rest += piece
    return None if message is None else (message, reader.dialect, rest)


class GoldenTests(SynchronousTestCase):
    """Bytes of the real programs."""

    def test_written(self) -> None:
        """Each message is written as its program writes it."""
        for dialect, data, message in all_messages():
            self.assertEqual(wire.encode(message, dialect).hex(), data.hex(), (dialect, message))

    def test_read_in_any_pieces(self) -> None:
        """Each is read by a server that takes only its dialect, however it is cut, and what follows is left."""
        for dialect, data, message in all_messages():
            for pieces in fragmentations(data + b"then data", most_cuts=40):
                self.assertEqual(read(pieces, frozenset({dialect})), (message, dialect, b"then data"))

    def test_told_apart(self) -> None:
        """A server that takes all three knows the dialect of each, when it comes in one piece."""
        for dialect, data, message in all_messages():
            if dialect is Dialect.A20 and message.destination == Address("", 65535):
                continue  # an empty host stands for no target; its first bytes are a21's
            found = read([data])
            self.assertEqual(found, (message, dialect, b""))

    def test_gob_in_five_frames(self) -> None:
        """The original's encoder writes a message in five pieces; the last of them completes it."""
        data = bytes.fromhex(VECTORS["gob"][8]["wire"])
        cuts = [0, 48, 85, 112, 202, len(data)]
        pieces = [data[a:b] for a, b in itertools.pairwise(cuts)]
        reader = MessageReader(ALL)
        self.assertEqual([reader.feed(piece) is None for piece in pieces], [True] * 4 + [False])
        self.assertEqual(gob.DESCRIPTORS, data[:202])

    def test_decoder_of_alpha_21(self) -> None:
        """What the original's decoder takes and refuses, ours does too."""
        for vector in VECTORS["a21_decoder"]:
            data = bytes.fromhex(vector["wire"])
            if vector["accepted"]:
                found = read([data], frozenset({Dialect.A21}))
                self.assertIsNotNone(found, vector["desc"])
                if "host" in vector:
                    self.assertEqual(found and found[0].destination, Address(vector["host"], vector["port"]))
            else:
                with self.assertRaises(MessageError, msg=vector["desc"]):
                    read([data], frozenset({Dialect.A21}))

    def test_unlike_dialects(self) -> None:
        """A message of a dialect that is not taken is refused, or stays incomplete; it is never taken for another."""
        for dialect, data, _ in all_messages():
            for taken in Dialect:
                if taken is dialect or {taken, dialect} == {Dialect.A20, Dialect.A21}:
                    continue
                with self.assertRaises(RemoteProtocolError):
                    read([data], frozenset({taken}))

    def test_alpha_20_at_a_server_for_others(self) -> None:
        """A request of alpha.20 is refused at once by a server that takes gob and alpha.21."""
        for vector in VECTORS["a20"]:
            if vector.get("host"):
                with self.assertRaises(MessageError):
                    read([bytes.fromhex(vector["wire"])], frozenset({Dialect.GOB, Dialect.A21}))


class GobTests(SynchronousTestCase):
    """What a Go program may say in other words."""

    def proto(self, *messages: bytes) -> gob.Proto | None:
        """Read gob messages."""
        return gob.GobReader().feed(b"".join(messages))

    def test_other_numbers_names_and_orders(self) -> None:
        """Types may have other numbers and names, fields another order; names of fields decide."""
        described = gob._struct_type(70, "X", [("Addr", 71), ("More", 6), ("Type", 3)])
        described += gob._struct_type(71, "", [("Port", 2), ("Host", 6)])
        address = gob._struct({0: gob._int(53), 1: gob._string("a.b")})
        value = gob._message(70, gob._struct({0: address, 1: gob._string("skipped"), 2: gob._uint(5)}))
        self.assertEqual(self.proto(described, value), gob.Proto(5, "a.b", 53))

    def test_unknown_fields_of_every_kind(self) -> None:
        """Fields that nobody asked for are passed over, whatever they are."""
        pair = gob._struct_type(80, "P", [("A", 2), ("B", 1)])
        listed = gob._slice_type(81, "[]P", 80)
        mapped = gob._message(
            -82, gob._struct({3: gob._struct({0: gob._struct({1: gob._int(82)}), 1: gob._int(6), 2: gob._int(2)})})
        )
        array = gob._message(
            -83, gob._struct({0: gob._struct({0: gob._struct({1: gob._int(83)}), 1: gob._int(3), 2: gob._int(2)})})
        )
        fields = [("Float", 4), ("Bytes", 5), ("Complex", 7), ("List", 81), ("Map", 82), ("Array", 83), ("Type", 3)]
        value = gob._struct(
            {
                0: gob._uint(1 << 60),
                1: gob._string("bytes"),
                2: gob._uint(1) + gob._uint(2),
                3: gob._uint(2) + gob._struct({0: gob._int(-5)}) + gob._struct({1: b"\1"}),
                4: gob._uint(1) + gob._string("key") + gob._int(7),
                5: gob._uint(2) + gob._uint(8) + gob._uint(300),
                6: gob._uint(1),
            }
        )
        described = gob._struct_type(79, "Proto", fields) + pair + listed + mapped + array
        self.assertEqual(self.proto(described, gob._message(79, value)), gob.Proto(1))

    def test_refusals(self) -> None:
        """A value without its description, a field of another kind, types without end, and length beyond bounds."""
        wrong_kind = gob._struct_type(64, "Proto", [("Type", 6)])
        endless = gob._struct_type(64, "Proto", [("More", 64)])
        for data in (
            gob._message(64, gob._struct({0: gob._uint(1)})),
            wrong_kind + gob._message(64, gob._struct({0: gob._string("x")})),
            endless + gob._message(64, b"\1" * 40 + b"\0" * 41),
            gob._struct_type(64, "Proto", [("Type", 3)]) + gob._message(64, b"\5\1\0"),
            gob._message(-64, b"\5\0"),
            gob._message(-64, b"\0"),
            b"\0",
            b"\xfd\1\0\0",
            b"\xfe\x20\0",
            gob._message(-64, b"\xf0"),
            gob._struct_type(64, "Proto", [("TCPF", 3)]) + gob._message(64, b"\1\1\0"),
        ):
            with self.assertRaises(gob.GobError, msg=data.hex()):
                self.proto(data)

    def test_bounds_of_a_message(self) -> None:
        """Port, number of flags and text are checked behind the gob too."""
        for proto in (
            gob.Proto(4, "a", 65536),
            gob.Proto(4, "a", -1),
            gob.Proto(9),
            gob.Proto(4, "a\n", 1),
            gob.Proto(3, flags=(1,) * 65),
        ):
            with self.assertRaises(MessageError, msg=str(proto)):
                read([gob.encode(proto, bool(proto.host))])


class WritingTests(SynchronousTestCase):
    """What cannot be said."""

    def test_too_long(self) -> None:
        """A host or flag list that a dialect cannot say is our mistake."""
        long = Message(MessageType.TCP, Address("h" * 254, 1))
        for dialect in (Dialect.A20, Dialect.A21):
            self.assertRaises(LocalProtocolError, wire.encode, long, dialect)
            self.assertRaises(LocalProtocolError, wire.encode, Message(MessageType.FLAGS, flags=(1,) * 65), dialect)
        self.assertRaises(
            LocalProtocolError, wire.encode, Message(MessageType.TCP, Address("h" * 4000, 1)), Dialect.GOB
        )


class PropertyTests(SynchronousTestCase):
    """Any message, any bytes."""

    @settings(deadline=None, max_examples=200)
    @given(
        st.sampled_from(list(Dialect)),
        st.sampled_from([MessageType.TCP, MessageType.UDP]),
        st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF).filter(str.isprintable), min_size=1, max_size=100),
        st.integers(0, 65535),
    )
    def test_there_and_back(self, dialect: Dialect, kind: MessageType, host: str, port: int) -> None:
        """What is written is read."""
        message = Message(kind, Address(host, port))
        self.assertEqual(read([wire.encode(message, dialect)], frozenset({dialect})), (message, dialect, b""))

    @settings(deadline=None, max_examples=200)
    @given(st.lists(st.integers(0, 511), max_size=64), st.sampled_from(list(Dialect)))
    def test_flags_there_and_back(self, flags: list[int], dialect: Dialect) -> None:
        """Flag lists too."""
        message = Message(MessageType.FLAGS, flags=tuple(flags))
        self.assertEqual(read([wire.encode(message, dialect)], frozenset({dialect})), (message, dialect, b""))

    def test_mutations(self) -> None:
        """10,000 mutated messages raise the one error or give a message inside the bounds, whole and in pieces."""
        golden = [data for _, data, _ in all_messages()]
        rng = random.Random(5)
        for number, data in enumerate(mutations(golden, 10_000, 5)):
            dialects = ALL if number % 2 else frozenset({rng.choice(list(Dialect))})
            cut = rng.randint(0, len(data))
            try:
                found = read([data[:cut], data[cut:]], dialects)
            except RemoteProtocolError:
                continue
            if found is not None:
                message, dialect, rest = found
                self.assertIn(dialect, dialects)
                self.assertLessEqual(len(data) - len(rest), 5 + wire.MAX_BODY)
                self.assertLessEqual(len(message.flags), wire.MAX_FLAGS)

    def test_what_waits_is_bounded(self) -> None:
        """A stream that never ends its message is refused before 5 KiB are held."""
        for head in (bytes.fromhex("5001011000"), bytes.fromhex("2f")):
            reader = MessageReader(ALL)
            with self.assertRaises(RemoteProtocolError):
                for _ in range(5200):
                    if reader.feed(head[:1]) is not None:
                        raise MessageError("ended")
                    head = head[1:] or b"\x7f"
