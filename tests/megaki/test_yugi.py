"""The server's connections in memory: handshakes, requests, floods, and every way to fail."""

from __future__ import annotations

import os
import random
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from mikanet.guard.admission import AdmissionLimits
from mikanet.guard.failures import FailureLog
from mikanet.guard.refusal import LINGER, TURN_AWAY_LINGER
from mikanet.megaki import yugi
from mikanet.megaki.bank import TokenBank
from mikanet.megaki.harness import Failure, WorkerError
from mikanet.megaki.sealing import SavedSession
from mikanet.megaki.yami import ClientYami, HalfOpen
from mikanet.relay import MemoryBudget
from tests.megaki.golden import CLIENT_KEY, ERRORS, HANDSHAKE, SERVER_KEY, packets
from tests.megaki.memory import REFUSAL_TIME, MemoryServer
from tests.support.feeding import mutations
from tests.support.transports import MemoryTransport

PUBLIC = SERVER_KEY.public_key()
SYN = packets(HANDSHAKE)[0]


class YugiTestCase(SynchronousTestCase):
    """A server in memory."""

    def setUp(self) -> None:
        """A server and its clock."""
        self.clock = Clock()
        self.server = MemoryServer(self.clock)

    def serve(self, **changes: Any) -> None:
        """Another server."""
        self.server = MemoryServer(self.clock, **changes)

    def established(self, host: str = "192.0.2.1") -> tuple[ClientYami, MemoryTransport]:
        """A session over a connection whose client's bytes the test carries."""
        client, transport = ClientYami(os.urandom), self.server.raw(host)
        transport.receive(client.connect(PUBLIC, CLIENT_KEY))
        self.carry(client, transport)
        return client, transport

    def carry(self, client: ClientYami, transport: MemoryTransport) -> list[Any]:
        """The server's bytes to the client and back, until nothing moves; what the client saw."""
        seen = []
        while transport.written:
            written, transport.written = b"".join(transport.written), []
            client.feed(written)
            while (event := client.next_event()) is not None:
                if getattr(event, "reply", b""):
                    transport.receive(event.reply)
                seen.append(event)
        return seen

    def counted(self, name: str) -> int:
        """A counter."""
        return self.server.config.counters[f"megaki.server.{name}"]

    def assert_refused(self, transport: MemoryTransport, since: float) -> None:
        """Nothing is answered, everything is read, and the FIN comes at the refusal's time, whatever comes meanwhile."""
        self.assertFalse(transport.closed or transport.aborted or transport.fin)
        transport.receive(random.Random(1).randbytes(2000))
        transport.receive_fin()
        self.clock.advance(since + REFUSAL_TIME - self.clock.seconds() - 0.01)
        self.assertFalse(transport.closed or transport.aborted or transport.fin)
        self.clock.advance(0.02)
        self.assertTrue(transport.fin)
        self.assertEqual(transport.bytes_written, b"")


class SessionTests(YugiTestCase):
    """What works."""

    def test_request(self) -> None:
        """A request reaches the pool with its client's address, port and token, and its answer the client."""
        session = self.server.session()
        done = session.send_message(b"hello")
        self.server.pump()
        ((context, request, answer),) = self.server.pool.asked
        self.assertEqual(request, b"hello")
        self.assertEqual(context.hex(), "0200d431c0000201" + "00" * 8 + session.saved.token.hex())
        answer.callback(b"world")
        self.server.pump()
        self.assertEqual(self.successResultOf(done), b"world")
        self.assertTrue(self.server.wires[0].far.no_delay)

    def test_byte_by_byte(self) -> None:
        """Everything works with one byte at a time."""
        client, transport = ClientYami(os.urandom), self.server.raw()
        for byte in client.connect(PUBLIC, CLIENT_KEY):
            transport.receive(bytes([byte]))
        self.carry(client, transport)
        for byte in client.send_message(b"q"):
            transport.receive(bytes([byte]))
        self.assertEqual(self.server.pool.asked[0][1], b"q")

    def test_resume(self) -> None:
        """A session goes on over a new connection, without threads; an unknown one becomes a new session there."""
        client = self.server.client()
        session = self.server.session(client)
        saved = session.saved
        session.close()
        self.server.pump()
        self.server.threads.full = True
        opening = client.resume(saved)
        self.server.pump()
        again = self.successResultOf(opening)
        self.assertTrue(again.resumed)
        self.assertEqual(again.saved.token, saved.token)
        self.server.threads.full = False
        opening = client.resume(SavedSession(os.urandom(16), os.urandom(32)))
        self.server.pump()
        self.assertFalse(self.successResultOf(opening).resumed)
        self.assertEqual((self.counted("handshakes"), self.counted("resumed")), (2, 1))

    def test_verbose(self) -> None:
        """Each session is logged with its client's address if that is wished for, and not otherwise."""
        for verbose in (False, True):
            self.serve(verbose=verbose)
            with capturedLogs() as logs:
                self.established("198.51.100.7")
            said = [formatEvent(event) for event in logs if event["log_namespace"] == "mikanet.megaki.yugi"]
            self.assertEqual(said, ["session of 198.51.100.7 port 54321, new"] if verbose else [])

    def test_one_at_a_time(self) -> None:
        """Of two requests in one read the second is begun when the first is answered."""
        client, transport = self.established()
        first = client.send_message(b"1")
        client.state = type(client.state).READY
        transport.receive(first + client.send_message(b"2"))
        self.assertEqual(len(self.server.pool.asked), 1)
        self.server.pool.asked[0][2].callback(b"one")
        self.assertEqual(self.server.pool.asked[1][1], b"2")

    def test_back_pressure(self) -> None:
        """Reading pauses while a request is handled and too much waits behind it."""
        client, transport = self.established()
        transport.receive(client.send_message(b"1"))
        client.state = type(client.state).READY
        transport.receive(client.send_message(bytes(100_000)))
        self.assertFalse(transport.reading)
        self.server.pool.asked[0][2].callback(b"one")
        self.assertTrue(transport.reading)

    def test_spent_key(self) -> None:
        """After the last request of a key the server answers, then closes; the session resumes (K4)."""
        client, transport = self.established()
        protocol = transport.protocol
        protocol._yami._key._seen.update(number.to_bytes(8) for number in range(8190))
        transport.receive(client.send_message(b"last"))
        self.server.pool.asked[0][2].callback(b"answer")
        self.assertEqual(self.carry(client, transport)[-1].plain, b"answer")
        self.assertTrue(transport.closed)

    def test_fin_after_a_request(self) -> None:
        """A client that ends its direction after a request gets the answer, then the end."""
        client, transport = self.established()
        transport.receive(client.send_message(b"q"))
        transport.receive_fin()
        self.assertFalse(transport.closed)
        self.server.pool.asked[0][2].callback(b"a")
        self.assertEqual(self.carry(client, transport)[-1].plain, b"a")
        self.assertTrue(transport.closed)

    def test_idle(self) -> None:
        """A silent session is closed after its idle time; one that is being served is not."""
        client, transport = self.established()
        _, other = self.established()
        transport.receive(client.send_message(b"q"))
        for _ in range(7):
            self.clock.advance(15)
        self.assertTrue(other.closed)
        self.assertFalse(transport.closed)

    def test_unread_answers(self) -> None:
        """Who leaves answers unread has no further request taken up, and in the end is cut (X5)."""
        client, transport = self.established()
        self.send_many(client, transport, 3, b"q")
        transport.producer.pauseProducing()  # as the transport says it when it has to keep the answer
        self.server.pool.asked.pop()[2].callback(bytes(1000))
        self.assertEqual(self.server.pool.asked, [])
        self.assertGreaterEqual(self.server.config.budget.used, 1000)
        transport.receive(bytes.fromhex("4d474baaca04") + (200_000).to_bytes(4) + bytes(yugi.HIGH_WATER))
        self.assertFalse(transport.reading)
        transport.producer.resumeProducing()
        self.server.pool.asked.pop()[2].callback(b"2")
        self.server.pool.asked.pop()[2].callback(b"3")
        self.assertTrue(transport.reading)
        transport.producer.pauseProducing()
        for _ in range(6):
            self.clock.advance(15)
        self.assertTrue(transport.aborted)
        self.assertEqual(self.counted("limit.unread"), 1)

    def test_unread_at_the_end(self) -> None:
        """An end that cannot leave because nothing is read becomes a reset, after a worker's failure or a refusal too."""
        for spoil in (
            lambda transport, done: done.errback(WorkerError(Failure.DIED)),
            lambda transport, done: transport.receive(bytes(100)) or done.callback(b"a"),
        ):
            client, transport = self.established()
            transport.receive(client.send_message(b"q"))
            transport.loseConnection = transport.loseWriteConnection = lambda: None
            transport.receive(b"")
            spoil(transport, self.server.pool.asked.pop()[2])
            for _ in range(int(REFUSAL_TIME + LINGER) // 15 + 7):
                self.clock.advance(15)
            self.assertTrue(transport.aborted)

    def test_slow_request(self) -> None:
        """A request that takes longer than the idle time is not cut while it comes in."""
        client, transport = self.established()
        packet = client.send_message(bytes(1000))
        for byte in range(0, len(packet), 100):
            self.clock.advance(40)
            transport.receive(packet[byte : byte + 100])
        self.assertFalse(transport.closed)
        self.assertEqual(self.server.pool.asked[0][1], bytes(1000))

    def test_memory_of_macs(self) -> None:
        """Remembered MACs count in the budget; when it is used up, sessions that have many end, to be resumed (K4, X5)."""
        self.serve(budget=MemoryBudget(2 * 200 * yugi.MARK_COST))
        client, transport = self.established()
        for number in range(200):
            self.assertFalse(transport.closed, number)
            transport.receive(client.send_message(b"q"))
            self.server.pool.asked.pop()[2].callback(b"a")
            self.carry(client, transport)
        self.assertTrue(transport.closed)
        transport.lose()
        self.assertEqual(self.server.config.budget.used, 0)

    def send_many(self, client: ClientYami, transport: MemoryTransport, count: int, request: bytes) -> None:
        """Requests without waiting for answers, as no honest client does."""
        for _ in range(count):
            transport.receive(client.send_message(request))
            client.state = type(client.state).READY

    def test_drain(self) -> None:
        """At the end of the server idle sessions are closed, and one that waits for an answer gets it first."""
        client, transport = self.established()
        _, idle = self.established()
        transport.receive(client.send_message(b"q"))
        self.server.factory.drain()
        self.assertTrue(idle.closed)
        self.assertFalse(transport.closed)
        self.server.pool.asked[0][2].callback(b"a")
        self.assertTrue(transport.closed)

    def test_books(self) -> None:
        """When all connections are gone nothing of them is left but the sessions in the bank."""
        transports = [self.established()[1], self.server.raw(), self.server.raw()]
        transports[1].receive(SYN)
        transports[2].receive(b"junk")
        for transport in transports:
            transport.lose()
        factory = self.server.factory
        self.assertEqual(len(factory.connections), 0)
        self.assertEqual((factory.admission.verified, factory.admission.unverified), (0, 0))
        self.assertEqual(self.server.config.budget.used, 0)
        self.assertEqual(len(self.server.config.bank), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class FailureTests(YugiTestCase):
    """What fails after the session stands."""

    def test_no_answer(self) -> None:
        """Whatever goes wrong with a worker, the client learns of it at once by the end of the connection."""
        for failure in Failure:
            client, transport = self.established()
            transport.receive(client.send_message(b"q"))
            self.server.pool.asked.pop()[2].errback(WorkerError(failure))
            self.assertTrue(transport.closed)
            self.assertEqual(self.counted(f"unanswered.{failure.name.lower()}"), 1)

    def test_answer_for_a_client_that_left(self) -> None:
        """A request whose client is gone is withdrawn, and an answer that comes all the same is dropped."""
        client, transport = self.established()
        transport.receive(client.send_message(b"q"))
        transport.lose()
        self.assertTrue(self.server.pool.asked[0][2].called)
        self.server.pool.asked[0][2].callback(b"a")
        self.server.pool.asked.clear()

    def test_replay_reflection_and_flips(self) -> None:
        """After proof a replayed, reflected, retyped or changed packet ends in the refusal, counted from then."""
        for forge in (
            lambda request, answer: request,
            lambda request, answer: answer,
            lambda request, answer: request[:5] + b"\5" + request[6:],
            lambda request, answer: request[:-1] + bytes([request[-1] ^ 1]),
            lambda request, answer: SYN,
        ):
            client, transport = self.established()
            self.clock.advance(3)
            request = client.send_message(bytes(32))
            transport.receive(request)
            self.server.pool.asked.pop()[2].callback(bytes(32))
            answer, transport.written = b"".join(transport.written), []
            transport.receive(forge(request, answer))
            self.assert_refused(transport, self.clock.seconds())
            self.assertEqual(self.server.pool.asked, [])

    def test_old_answer_after_refusal(self) -> None:
        """An answer that comes while the client is being turned away is not sent."""
        client, transport = self.established()
        request = client.send_message(b"q")
        transport.receive(request + request)
        answer = self.server.pool.asked[0][2]
        transport.protocol._refuse()
        answer.callback(b"a")
        self.assertEqual(transport.bytes_written, b"")

    def test_memory(self) -> None:
        """When unfinished requests fill the budget, further ones are cut off; small ones go on."""
        self.serve(budget=MemoryBudget(150_000))
        small, light = self.established()
        big = []
        for _ in range(3):
            client, transport = self.established()
            transport.receive(client.send_message(bytes(200_000))[:100_000])
            big.append(transport)
        self.assertEqual([transport.closed for transport in big], [False, True, True])
        light.receive(small.send_message(b"q"))
        self.assertEqual(self.server.pool.asked[0][1], b"q")


class RefusalTests(YugiTestCase):
    """What fails before the session stands."""

    def test_all_the_same(self) -> None:
        """Silence, noise, a bad SYN, a wrong packet, a bad ACK: no answer, and a FIN at the same time."""
        flipped = SYN[:40] + bytes([SYN[40] ^ 1]) + SYN[41:]
        for data in (b"", b"GET / HTTP/1.1\r\n\r\n", flipped, packets(HANDSHAKE)[2], SYN[:549] + b"\0"):
            transport, since = self.server.raw(), self.clock.seconds()
            if data:
                transport.receive(data)
            self.assert_refused(transport, since)
            transport.settle()
            self.clock.advance(LINGER)
        client, transport = ClientYami(os.urandom), self.server.raw()
        since = self.clock.seconds()
        transport.receive(client.connect(PUBLIC, CLIENT_KEY))
        client.feed(b"".join(transport.written))
        transport.written = []
        ack = getattr(client.next_event(), "reply")  # noqa: B009 - a Reply
        transport.receive(ack[:-1] + bytes([ack[-1] ^ 1]))
        self.assert_refused(transport, since)

    def test_mutations(self) -> None:
        """Mutated handshakes get nothing but a SYNACK or REQ_REHS, and never an exception."""
        golden = [SYN, packets(HANDSHAKE)[2], packets(ERRORS[1])[0]]
        for data in mutations(golden, 300, seed=12):
            transport = self.server.raw()
            transport.receive(data)
            self.assertIn(len(transport.bytes_written), (0, 6, 310))
            transport.lose()

    def test_another_version(self) -> None:
        """A SYN of another version gets its error, then the connection is closed."""
        transport = self.server.raw()
        transport.receive(packets(ERRORS[0])[0])
        self.assertEqual(len(transport.bytes_written), 310)
        self.assertTrue(transport.closed)

    def test_failures_are_named_in_the_log(self) -> None:
        """Who sends no SYN for our key is; who meets a limit, or is told an error code, is not."""
        lines: list[str] = []
        self.server.factory.failures = FailureLog(self.server.clock, "megaki", lines.append)
        self.server.raw().receive(packets(ERRORS[0])[0])
        self.server.raw()
        self.assertEqual(lines, [])
        self.server.raw().receive(SYN[:-1] + bytes([SYN[-1] ^ 1]))
        self.server.raw("192.0.2.2").receive(b"GET / HTTP/1.1\r\n\r\n" + bytes(1000))
        self.assertEqual(lines, [f"authentication failed from 192.0.2.{last} (megaki)" for last in (1, 2)])

    def test_early_bytes(self) -> None:
        """While a SYN is being opened at most 2 KiB are kept; more is refused."""
        self.server.threads.hold = True
        transport = self.server.raw()
        transport.receive(SYN)
        transport.receive(bytes(yugi.EARLY_BYTES + 1))
        self.assertEqual(self.counted("refused.before_proof"), 1)
        self.server.threads.release()
        self.assertEqual(transport.bytes_written, b"")

    def test_busy_threads(self) -> None:
        """When too many SYNs wait for a thread, the newest is turned away."""
        self.server.threads.full = True
        transport = self.server.raw()
        transport.receive(SYN)
        self.assertEqual(self.counted("limit.syn_queue"), 1)
        self.assert_refused(transport, 0.0)

    def test_known_first(self) -> None:
        """SYNs from where a session came lately go before those of strangers, for ten minutes."""
        self.established("198.51.100.7")
        for host, seconds in (("198.51.100.99", 600), ("192.0.2.1", 0), ("198.51.100.99", 1)):
            self.clock.advance(seconds)
            self.server.raw(host).receive(SYN)
        self.assertEqual(self.server.threads.known, [False, True, False, False])

    def test_gone_meanwhile(self) -> None:
        """A client that leaves while its SYN is being opened is no trouble."""
        self.server.threads.hold = True
        transport = self.server.raw()
        transport.receive(SYN)
        transport.lose()
        self.server.threads.release()
        self.assertEqual(transport.bytes_written, b"")

    def test_ack_too_late(self) -> None:
        """An ACK more than 10 s after its SYNACK is refused."""
        client, transport = ClientYami(os.urandom), self.server.raw()
        transport.receive(client.connect(PUBLIC, CLIENT_KEY))
        self.clock.advance(yugi.HALF_OPEN_TIME)
        transport.written.clear()
        self.assertEqual(self.counted("limit.half_open"), 1)
        self.assert_refused(transport, 0.0)

    def test_a_stranger_too_many(self) -> None:
        """Over the cap of unverified connections one gets a FIN at once, and no reset for what it has sent already (X3)."""
        self.serve(limits=AdmissionLimits(unverified_per_address=1))
        self.server.raw()
        self.clock.advance(3)
        transport = self.server.raw()
        self.assertTrue(transport.fin)
        transport.receive(SYN)
        self.assertFalse(transport.closed or transport.aborted)
        self.clock.advance(TURN_AWAY_LINGER)
        self.assertTrue(transport.closed)

    def test_no_room_for_more(self) -> None:
        """Over the cap of verified connections a client is reset; a full bank answers with an error code."""
        self.serve(limits=AdmissionLimits(connections=1))
        self.established()
        _, transport = self.established()
        self.assertTrue(transport.aborted)
        self.assertEqual(self.counted("limit.verified"), 1)
        self.serve(bank=TokenBank(capacity=1))
        self.established()
        transport = self.server.raw()
        transport.receive(SYN)
        self.assertTrue(transport.closed)
        self.assertEqual(self.counted("refused.with_error_code"), 1)


class FloodTests(YugiTestCase):
    """Strangers by the thousand."""

    def test_syn_flood(self) -> None:
        """10,000 SYNs from one /24 cost 50 RSA operations and not one session its answer; another network connects."""
        client, transport = self.established("198.51.100.7")
        for number in range(10_000):
            stranger = self.server.raw(f"192.0.2.{number % 250}")
            stranger.receive(SYN)
            stranger.lose()
        self.assertEqual(self.counted("limit.syn_rate"), 9950)
        transport.receive(client.send_message(b"q"))
        self.server.pool.asked[0][2].callback(b"a")
        self.assertEqual(self.carry(client, transport)[-1].plain, b"a")
        self.established("203.0.113.9")
        self.assertEqual(len(self.server.config.bank), 2)

    def test_resumptions(self) -> None:
        """Of one network's resumptions so many are taken and the rest refused; another network's session is resumed."""
        self.serve(resume_rate=10, resume_burst=20)
        noisy, quiet = self.established("192.0.2.1"), self.established("203.0.113.9")
        saved = noisy[0].saved, quiet[0].saved
        for _, transport in (noisy, quiet):
            transport.lose()

        def resume(host: str, which: int) -> bytes:
            transport = self.server.raw(host)
            transport.receive(ClientYami(os.urandom).resume(saved[which]))
            answer = transport.bytes_written
            transport.lose()
            return answer

        answered = sum(bool(resume(f"192.0.2.{number}", 0)) for number in range(120))
        self.assertEqual(answered, 20)
        self.assertEqual(self.counted("limit.resume_rate"), 100)
        self.assertTrue(resume("203.0.113.9", 1))
        self.clock.advance(1)
        self.assertEqual(sum(bool(resume("192.0.2.1", 0)) for _ in range(20)), 10)

    def test_connections_of_one_network(self) -> None:
        """One network has so many established connections, however many addresses; the next is reset, others' are not."""
        self.serve(limits=AdmissionLimits(per_user=20))
        for number in range(20):
            self.established(f"192.0.2.{number}")
        _, transport = self.established("192.0.2.99")
        self.assertTrue(transport.aborted)
        self.assertEqual(self.counted("limit.verified"), 1)
        _, transport = self.established("203.0.113.9")
        self.assertFalse(transport.aborted)

    def test_requests_name_their_network(self) -> None:
        """The pool is told whose request it is, so that networks take turns."""
        for host in ("192.0.2.1", "192.0.2.99", "203.0.113.9"):
            client, transport = self.established(host)
            transport.receive(client.send_message(b"q"))
        first, second, third = self.server.pool.groups
        self.assertEqual(first, second)
        self.assertNotEqual(first, third)

    def test_half_handshakes(self) -> None:
        """2,500 handshakes left half done take no place in the bank, and 30 clients get through at once."""
        self.serve(syn_rate=0, limits=AdmissionLimits(unverified=10_000))
        synack = b"x" * 310
        self.patch(yugi, "answer_syn", lambda *_: yugi.SynAnswer(synack, half_open()))
        strangers = [self.server.raw(f"10.{number // 250}.{number % 250}.1") for number in range(2500)]
        for stranger in strangers:
            stranger.receive(SYN)
        self.assertEqual(len(self.server.factory._half_open), yugi.MAX_HALF_OPEN)
        self.assertEqual(self.counted("limit.half_open"), 2500 - yugi.MAX_HALF_OPEN)
        self.patch(yugi, "answer_syn", REAL_ANSWER)
        for number in range(30):
            client, transport = self.established(f"198.51.100.{number}")
            transport.receive(client.send_message(b"q"))
            self.server.pool.asked.pop()[2].callback(b"a")
            self.assertEqual(self.carry(client, transport)[-1].plain, b"a")
        self.assertEqual(len(self.server.config.bank), 30)

    def test_admission(self) -> None:
        """Unverified connections of one address stop at their cap; the door stays open to others."""
        for _ in range(32):
            self.server.raw("192.0.2.5")
        self.clock.advance(3)
        self.assertTrue(self.server.raw("192.0.2.5").fin)
        self.assertFalse(self.server.raw("192.0.2.6").fin)


REAL_ANSWER = yugi.answer_syn


def half_open() -> Any:
    """What is kept of a handshake."""
    return HalfOpen(os.urandom(16), os.urandom(32), os.urandom(32))
