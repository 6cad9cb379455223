"""The pool, with workers that are only pretended."""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.counters import Counters
from mikanet.megaki import pegasus
from mikanet.megaki.exchange import PROBE_BYTES, START, Context
from mikanet.megaki.harness import Failure, PoolSettings, WorkerError
from mikanet.megaki.member import State
from mikanet.megaki.pegasus import Pool
from mikanet.megaki.starts import BACKOFF

CONTEXT = Context("192.0.2.1", 1, bytes(16)).encode()


class FakeWorker:
    """A worker whose every move is the test's."""

    def __init__(self, listener: Any, pid: int, is_shell: bool) -> None:
        self.listener = listener
        self.pid = pid
        self.is_shell = is_shell
        self.written: list[bytes] = []
        self.killed = self.retired = False
        self.number = bytes(8)

    def write(self, data: bytes) -> None:
        """Note it."""
        self.written.append(data)
        if data[0] == START:
            self.number = data[1:9]

    def retire(self) -> None:
        """Note it."""
        self.retired = True

    def kill(self) -> None:
        """Note it."""
        self.killed = True

    @property
    def asked(self) -> bytes | None:
        """The request that it was sent last, if there is one."""
        last = self.written[-1] if self.written else b""
        return last[13 + 32 + 13 : -9] if len(last) > 50 else None

    def say(self, data: bytes) -> None:
        """Bytes for the pool."""
        self.listener.data_received(data)

    def numbered(self, *parts: bytes) -> bytes:
        """Parts of an answer, each with the number of the last request after its first byte, as shells send them."""
        return b"".join(bytes([part[0] | 0x80]) + self.number + part[1:] for part in parts)

    def answer(self, data: bytes) -> None:
        """A whole answer."""
        self.say(self.numbered(b"\1", b"\4" + len(data).to_bytes(4, "little") + data, b"\3"))

    def die(self, last_words: bytes = b"") -> None:
        """End and be reaped."""
        self.listener.exited("signal 9", last_words)


class PoolTestCase(SynchronousTestCase):
    """A pool of two."""

    is_shell = True

    def setUp(self) -> None:
        """A pool with ready workers."""
        self.clock = Clock()
        self.workers: list[FakeWorker] = []
        self.cannot_start = False
        self.pool = self.make()
        self.pool.start()
        self.ready()

    def make(self, **changes: Any) -> Pool:
        """A pool."""
        settings = PoolSettings(**{"size": 2, "queue_length": 3, **changes})
        self.counters = Counters()
        return Pool(self.clock, self.spawn, settings, self.counters, uniform=lambda: 0.5)

    def spawn(self, listener: Any) -> FakeWorker:
        """A new worker."""
        if self.cannot_start:
            raise OSError("no more processes")
        worker = FakeWorker(listener, 100 + len(self.workers), self.is_shell)
        self.workers.append(worker)
        return worker

    def ready(self, *workers: FakeWorker) -> None:
        """These (or all that were started) say that they are there."""
        for worker in workers or list(self.workers):
            if worker.written == [PROBE_BYTES]:
                worker.say(PROBE_BYTES)
        self.clock.advance(0)

    def ask(self, request: bytes = b"q") -> Any:
        """A request whose failure is expected to be looked at."""
        return self.pool.handle(CONTEXT, request)

    def asked(self, request: bytes) -> FakeWorker:
        """The worker that has this request."""
        (worker,) = [each for each in self.workers if each.asked == request and not each.killed]
        return worker

    def failure(self, done: Any) -> Failure:
        """Why a request failed."""
        error = self.failureResultOf(done, WorkerError).value
        assert isinstance(error, WorkerError)
        return error.failure


class ExchangeTests(PoolTestCase):
    """Requests and answers."""

    def test_last_words(self) -> None:
        """A worker that ends right after its answer has given it, though its end is noticed first."""
        done, half = self.ask(b"1"), self.ask(b"2")
        waiting = self.ask(b"3")
        first, second = self.asked(b"1"), self.asked(b"2")
        first.die(first.numbered(b"\1", b"\4\3\0\0\0one"))
        self.assertEqual(self.successResultOf(done), b"one")
        second.die(second.numbered(b"\1", b"\4\3\0\0\0tw"))
        self.assertEqual(self.failure(half), Failure.DIED)
        self.assertNoResult(waiting)  # nobody gave it to the dead
        self.assertEqual((self.pool.status.served, self.pool.status.deaths), (1, 2))

    def test_withdrawn(self) -> None:
        """A request that nobody waits for any more is not given to a worker; one that a worker has is done."""
        begun, _, waiting, last = (self.ask(b"%d" % number) for number in range(4))
        for each in (begun, waiting):
            each.cancel()
            self.failureResultOf(each, CancelledError)
        worker = self.asked(b"0")
        worker.answer(b"zero")
        self.assertEqual(worker.asked, b"3")
        worker.answer(b"three")
        self.assertEqual(self.successResultOf(last), b"three")
        self.assertEqual(self.pool.status.served, 2)

    def test_given_up_after_it_was_begun(self) -> None:
        """A request that waited, was begun and is then given up ends with its answer; its worker lives and serves on."""
        self.ask(b"1")
        busy = self.asked(b"1")
        self.ask(b"2")
        for number in range(15):
            waiting = self.ask(b"w%d" % number)
            busy.answer(b"a")
            self.assertEqual(busy.asked, b"w%d" % number)
            waiting.cancel()
            self.failureResultOf(waiting, CancelledError)
        busy.answer(b"a")
        self.assertFalse(busy.killed)
        self.assertFalse(self.pool.sick)
        self.assertEqual((self.pool.status.deaths, self.pool.status.killed), (0, 0))

    def test_answer_that_nobody_asked_for(self) -> None:
        """Of a worker that answers unasked, or another's request, nothing is delivered to anybody, and it is replaced."""
        done = self.ask(b"1")
        worker = self.asked(b"1")
        old = worker.numbered(b"\1", b"\4\3\0\0\0old", b"\3")
        worker.say(old)
        self.assertEqual(self.successResultOf(done), b"old")
        following = self.ask(b"2")
        if worker.asked != b"2":
            self.ask(b"3")
            worker = self.asked(b"3")
        else:
            worker = self.asked(b"2")
        worker.say(old)
        self.assertTrue(worker.killed)
        if worker.asked == b"2":
            self.assertEqual(self.failure(following), Failure.BROKEN)

    def test_last_words_with_more(self) -> None:
        """Of last words that are more than an answer nothing is delivered."""
        done = self.ask(b"1")
        worker = self.asked(b"1")
        worker.die(worker.numbered(b"\1", b"\4\3\0\0\0one", b"\3", b"\3"))
        self.assertEqual(self.failure(done), Failure.DIED)

    def test_networks_in_turn(self) -> None:
        """Networks take turns, and when the queue is full the one that has most waiting gives up its newest."""
        for _ in range(2):
            self.pool.handle(CONTEXT, b"busy", "noisy")
        noisy = [self.pool.handle(CONTEXT, b"n%d" % number, "noisy") for number in range(3)]
        self.assertEqual(self.failure(self.pool.handle(CONTEXT, b"n4", "noisy")), Failure.QUEUE_FULL)
        quiet = self.pool.handle(CONTEXT, b"quiet", "quiet")
        self.assertEqual(self.failure(noisy[2]), Failure.QUEUE_FULL)
        order = []
        for _ in range(5):
            worker = next(each for each in self.workers if each.asked is not None)
            order.append(worker.asked)
            worker.written, done = [], worker.asked
            worker.answer(b"a")
            if done == b"quiet":
                self.assertEqual(self.successResultOf(quiet), b"a")
        self.assertLess(order.index(b"quiet"), order.index(b"n1"))

    def test_probes_take_no_place(self) -> None:
        """Without a queue, too, a request finds a worker that is just asked for a sign of life."""
        self.pool = self.make(queue_length=0)
        self.workers.clear()
        self.pool.start()
        self.ready()
        self.clock.advance(pegasus.PROBE_INTERVAL)
        done = [self.ask(b"1"), self.ask(b"2")]
        self.assertEqual(self.failure(self.ask(b"3")), Failure.QUEUE_FULL)
        for worker in self.workers:
            worker.say(PROBE_BYTES)
        for worker in self.workers:
            worker.answer(b"a")
        self.assertEqual([self.successResultOf(each) for each in done], [b"a", b"a"])

    def test_answers(self) -> None:
        """Two requests go to two workers at once, and each gets its own answer."""
        first, second = self.ask(b"1"), self.ask(b"2")
        self.asked(b"2").answer(b"two")
        self.assertEqual(self.successResultOf(second), b"two")
        self.assertNoResult(first)
        self.asked(b"1").answer(b"one")
        self.assertEqual(self.successResultOf(first), b"one")

    def test_queue_in_order(self) -> None:
        """More requests wait, in order, and a full queue refuses at once."""
        done = [self.ask(bytes([65 + n])) for n in range(5)]
        self.assertEqual(self.failure(self.ask()), Failure.QUEUE_FULL)
        self.assertEqual(self.pool.status.queued, 3)
        for number in range(5):
            self.asked(bytes([65 + number])).answer(bytes([97 + number]))
            self.assertEqual(self.successResultOf(done[number]), bytes([97 + number]))

    def test_queue_time(self) -> None:
        """A request that no worker took within the queue's time fails then, and not before."""
        self.ask(b"1").addErrback(lambda _: None)
        self.ask(b"2").addErrback(lambda _: None)
        self.clock.advance(5)
        waiting = self.ask()
        self.clock.advance(4)
        for worker in self.workers:
            worker.say(worker.numbered(b"\1"))
        self.clock.advance(1)  # both workers are killed at their deadline, and their places are empty for a moment
        self.assertNoResult(waiting)
        self.cannot_start = True
        self.clock.advance(5)
        self.assertEqual(self.failure(waiting), Failure.QUEUE_TIME)

    def test_failed(self) -> None:
        """A worker that says it failed fails the request, and is used again."""
        done = self.ask()
        worker = self.asked(b"q")
        worker.say(worker.numbered(b"\1", b"\5", b"\3"))
        self.assertEqual(self.failure(done), Failure.FAILED)
        self.assertEqual(self.pool.status.idle, 2)

    def test_deadline(self) -> None:
        """One deadline for the whole exchange, whatever part of the answer is there: then SIGKILL, and never again."""
        done = self.ask()
        worker = self.asked(b"q")
        self.clock.advance(9.9)
        worker.say(worker.numbered(b"\1", b"\4\1\0\0\0x"))
        self.assertFalse(worker.killed)
        self.clock.advance(0.1)
        self.assertTrue(worker.killed)
        self.assertEqual(self.failure(done), Failure.STALLED)
        worker.answer(b"late")
        worker.die()
        self.clock.advance(0.1)
        self.ready()
        for _ in range(3):
            self.ask(b"next").addErrback(lambda _: None)
        self.assertNotEqual(worker.asked, b"next")

    def test_out_of_step(self) -> None:
        """Wrong answers, too many bytes, and words that nobody asked for kill the worker."""
        for said in ((b"\3",), (b"\1", b"\4\xff\xff\xff\xff"), (b"\1", b"\4\1\0\0\0x", b"\3", b"\3"), None):
            done = self.ask()
            worker = self.asked(b"q")
            worker.say(b"\1" if said is None else worker.numbered(*said))
            self.assertTrue(worker.killed)
            self.assertEqual(self.failure(done), Failure.BROKEN)
            worker.die()
            self.clock.advance(1)
            self.ready()
        idle = self.workers[-1]
        idle.say(b"\1")
        self.assertTrue(idle.killed)

    def test_slow_log(self) -> None:
        """An exchange over the slow time is counted."""
        self.ask()
        self.clock.advance(1.5)
        self.asked(b"q").answer(b"")
        self.assertEqual(self.pool.status.slow, 1)


class DeathTests(PoolTestCase):
    """Workers that die."""

    def test_in_a_request(self) -> None:
        """The request fails at once, with its own worker alone, and the place is taken again after 0.1 s."""
        done, other = self.ask(b"1"), self.ask(b"2")
        self.asked(b"1").die()
        self.assertEqual(self.failure(done), Failure.DIED)
        self.clock.advance(0.1)
        self.ready()
        self.asked(b"2").answer(b"two")
        self.assertEqual(self.successResultOf(other), b"two")
        self.assertEqual(self.pool.status.idle, 2)

    def test_crashes_in_requests(self) -> None:
        """Requests that crash their workers cost themselves: the place is taken again at once, and nobody calls it sick."""
        for _ in range(40):
            done = self.ask(b"crash")
            worker = self.asked(b"crash")
            worker.die()
            self.workers.remove(worker)
            self.assertEqual(self.failure(done), Failure.DIED)
            self.clock.advance(0)
            self.ready(self.workers[-1])
            self.assertEqual(self.pool.status.idle, 2)
        self.assertFalse(self.pool.sick)
        self.assertEqual(self.pool.status.deaths, 40)

    def test_dies_soon_after_coming_up(self) -> None:
        """A worker that comes up and dies at once without a request has failed to start; one that lived on has not."""
        self.workers[0].die()
        count = len(self.workers)
        self.clock.advance(BACKOFF[0] / 2)
        self.assertEqual(len(self.workers), count)
        self.clock.advance(BACKOFF[0] / 2)
        self.assertEqual(len(self.workers), count + 1)
        self.ready(self.workers[-1])
        self.clock.advance(2)
        self.workers[-1].die()
        count = len(self.workers)
        self.clock.advance(0)
        self.assertEqual(len(self.workers), count + 1)

    def test_back_off(self) -> None:
        """Workers that die before they answered anything are started less and less often, up to every 5 s."""
        for worker in self.workers:
            worker.die()
        times = []
        while len(times) < 9:
            count, waited = len(self.workers), 0.0
            while len(self.workers) == count:
                self.clock.advance(0.05)
                waited += 0.05
            times.append(round(waited, 1))
            for worker in self.workers[count:]:
                worker.die()
        self.assertEqual(times[0], 0.1)
        self.assertEqual(times[-1], 5.0)
        self.assertEqual(times, sorted(times))

    def test_sick(self) -> None:
        """Ten deaths in a minute make the pool sick; with no worker left it refuses at once; a minute later it is well."""
        for _ in range(8):
            for worker in self.workers[-2:]:
                worker.die()
            self.clock.advance(5)
        waiting = self.ask()
        for worker in self.workers[-2:]:
            worker.die()
        self.assertTrue(self.pool.status.sick)
        for each in (waiting, self.ask()):
            self.assertEqual(self.failure(each), Failure.SICK)
        self.clock.advance(5)
        self.ready()
        done = self.ask()
        self.asked(b"q").answer(b"a")
        self.assertEqual(self.successResultOf(done), b"a")
        self.clock.advance(61)
        self.assertFalse(self.pool.status.sick)

    def test_cannot_start(self) -> None:
        """If no process can be started, it is tried again after the back-off."""
        self.cannot_start = True
        self.workers[0].die()
        self.clock.advance(1)
        self.cannot_start = False
        self.clock.advance(5)
        self.assertEqual(len(self.workers), 3)

    def test_slow_start(self) -> None:
        """A shell that does not come up within its time is killed."""
        self.workers[0].die()
        self.clock.advance(0.1)
        self.clock.advance(PoolSettings().start_time)
        self.assertTrue(self.workers[2].killed)

    def test_probe(self) -> None:
        """Idle shells are probed; one that gives no sign of life is killed, the others serve on."""
        self.clock.advance(pegasus.PROBE_INTERVAL)
        dead, alive = self.workers
        self.assertEqual([each.written[-1] for each in self.workers], [PROBE_BYTES] * 2)
        waiting = self.ask()
        alive.say(PROBE_BYTES)
        self.assertEqual(alive.asked, b"q")
        alive.answer(b"a")
        self.assertEqual(self.successResultOf(waiting), b"a")
        self.clock.advance(pegasus.PROBE_TIME)
        self.assertTrue(dead.killed)
        self.assertFalse(alive.killed)

    def test_random_deaths(self) -> None:
        """Under random answers, deaths and stalls every request gets its own answer or one error, and no more."""
        rng = random.Random(8)
        self.pool = self.make(size=4, queue_length=10, max_requests=5)
        self.workers.clear()
        self.pool.start()
        results: dict[bytes, list[Any]] = {}
        for number in range(3000):
            self.ready()
            request = str(number).encode()
            results[request] = []
            self.ask(request).addBoth(results[request].append)
            for worker in list(self.workers):
                roll = rng.random()
                if worker.killed or worker.retired or roll < 0.03:
                    worker.die()
                    self.workers.remove(worker)
                elif worker.asked is not None and roll < 0.6:
                    request, worker.written = worker.asked, []
                    worker.answer(b"re:" + request)
                elif worker.written[-1:] == [PROBE_BYTES]:
                    worker.written.pop()
                    worker.say(PROBE_BYTES)
            self.clock.advance(rng.random() / 2)
        self.clock.advance(30)
        answered = 0
        for request, got in results.items():
            self.assertEqual(len(got), 1, request)
            if isinstance(got[0], bytes):
                self.assertEqual(got[0], b"re:" + request)
                answered += 1
        self.assertGreater(answered, 1000)


class ReplacementTests(PoolTestCase):
    """Workers that are let go on purpose."""

    def test_max_requests(self) -> None:
        """A worker that has served its number is replaced: the new one is ready before the old one goes."""
        self.pool = self.make(size=1, max_requests=3)
        self.workers.clear()
        self.pool.start()
        self.ready()
        (old,) = self.workers
        for _ in range(3):
            self.ask()
            old.answer(b"a")
        new = self.workers[1]
        self.assertFalse(old.retired)
        done = self.ask(b"meanwhile")
        old.answer(b"a")
        self.assertEqual(self.successResultOf(done), b"a")
        busy = self.ask(b"long")
        new.say(PROBE_BYTES)
        self.assertFalse(old.retired)
        old.answer(b"a")
        self.assertEqual(self.successResultOf(busy), b"a")
        self.assertTrue(old.retired)
        self.assertEqual(self.pool.status.idle, 1)
        self.clock.advance(pegasus.RETIRE_TIME)
        self.assertTrue(old.killed)  # it did not go by itself

    def test_jitter(self) -> None:
        """Workers do not all end after the same number of requests."""
        rng = random.Random(1)
        pool = Pool(self.clock, self.spawn, PoolSettings(size=50), uniform=rng.random)
        pool.start()
        limits = {member.limit for member in pool._members}
        self.assertGreater(len(limits), 20)
        self.assertTrue(all(900 <= limit <= 1100 for limit in limits))

    def test_reload(self) -> None:
        """Every worker is replaced, one after another, no request is lost, and never is there one less than wanted."""
        busy = self.ask(b"busy")
        self.pool.reload()
        for _ in range(2):
            new = self.workers[-1]
            new.say(PROBE_BYTES)
            self.assertGreaterEqual(self.pool.status.idle + self.pool.status.busy, 2)
        self.asked(b"busy").answer(b"done")
        self.assertEqual(self.successResultOf(busy), b"done")
        self.assertEqual([worker.retired for worker in self.workers], [True, True, False, False])
        self.assertEqual(self.pool.status.deaths, 0)
        for worker in self.workers[:2]:
            worker.die()
        self.assertEqual(self.pool.status.deaths, 0)

    def test_reload_of_a_broken_script(self) -> None:
        """If the new script does not come up, the old workers stay and serve."""
        self.pool.reload()
        for _ in range(3):
            self.workers[-1].die()
            self.clock.advance(1)
        self.assertFalse(self.workers[0].retired or self.workers[1].retired)
        done = self.ask()
        self.asked(b"q").answer(b"a")
        self.assertEqual(self.successResultOf(done), b"a")

    def test_broken_reload_is_given_up(self) -> None:
        """A reload whose first worker does not come up starts no more, however much the old ones answer; a later one may."""
        self.pool.reload()
        self.workers[2].die()
        self.assertEqual(self.counters["megaki.pool.reloads_failed"], 1)
        for _ in range(20):
            done = self.ask()
            self.asked(b"q").answer(b"a")
            self.assertEqual(self.successResultOf(done), b"a")
            self.clock.advance(1)
            for member in list(self.pool._members):
                if member.state is State.PROBED:
                    member.worker.say(PROBE_BYTES)
        self.assertEqual(len(self.workers), 3)
        self.pool.reload()
        for _ in range(2):
            self.workers[-1].say(PROBE_BYTES)
        self.assertEqual([worker.retired for worker in self.workers[:2]], [True, True])
        self.assertEqual(self.pool.status.idle, 2)
        self.assertEqual({member.state for member in self.pool._members if member.worker.retired}, {State.RETIRING})

    def test_death_while_replacing(self) -> None:
        """If another worker dies meanwhile, the replacement fills its place and the old one is replaced later."""
        self.pool.reload()
        self.workers[0].die()
        self.workers[2].say(PROBE_BYTES)
        self.assertFalse(self.workers[1].retired)
        self.clock.advance(1)
        self.workers[3].say(PROBE_BYTES)
        self.assertTrue(self.workers[1].retired)
        self.assertEqual(self.pool.status.idle, 2)

    def test_stop(self) -> None:
        """At the end waiting requests fail, the one that runs is answered, and all workers go."""
        running, _, waiting = self.ask(b"1"), self.ask(b"2"), self.ask(b"3")
        stopped = self.pool.stop()
        self.assertEqual(self.failure(waiting), Failure.STOPPED)
        self.asked(b"1").answer(b"one")
        self.assertEqual(self.successResultOf(running), b"one")
        self.asked(b"2").answer(b"two")
        self.assertNoResult(stopped)
        for worker in self.workers:
            self.assertTrue(worker.retired)
            worker.die()
        self.successResultOf(stopped)
        self.assertEqual(self.failure(self.ask()), Failure.STOPPED)
        self.assertEqual(len(self.workers), 2)


class ProgramTests(PoolTestCase):
    """Programs behind exec:, which are asked step by step and never probed."""

    is_shell = False

    def test_step_by_step(self) -> None:
        """They are ready at once, and get START, HANDLE and QUIT one by one."""
        done = self.ask(b"hello")
        (worker,) = [each for each in self.workers if each.written]
        for said, expected in ((b"\1", 3), (b"\4\2\0\0\0ok", 2)):
            worker.say(said)
            self.assertEqual(worker.written[-1][0], expected)
        worker.say(b"\3")
        self.assertEqual(self.successResultOf(done), b"ok")
        self.clock.advance(pegasus.PROBE_INTERVAL)
        self.assertEqual(len(worker.written), 3)
