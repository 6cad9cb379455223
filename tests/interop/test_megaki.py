"""Megaki with real processes: PHP and Python workers, kills, floods, reloads, and the gateway under curl."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from twisted.internet import defer
from twisted.internet import reactor as _reactor
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectingCancelledError, ConnectionLost
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from mikanet.crypto import rsa_oaep
from mikanet.megaki.arcangelo import Kind, WorkerCommand
from mikanet.megaki.sazukari import KeyStock, Sazukari, Session, SessionLostError, TimedOutError
from mikanet.megaki.yami import ClientYami, Reply, State
from mikanet.service.secret_files import write_private_file
from tests.lab import progress
from tests.lab.quest import quest
from tests.megaki.golden import CLIENT_KEY, SERVER_KEY
from tests.support.peers import require_program, require_root
from tests.support.processes import ROOT, TwistdProcess, free_port, rss

reactor: Any = _reactor

HOWTO = ROOT / "docs" / "howto"

PHP = r"""<?php
function on_init() { arca::log('init'); }
function on_start() { }
function on_stop() { global $leaving; if ($leaving) exit(0); }
function on_handle() {
    echo "noise on stdout\n";
    $request = arca::$request;
    switch (substr($request, 0, 5)) {
        case 'about':
            return json_encode([bin2hex(arca::$token), bin2hex(arca::$guid), arca::$client_ip, arca::$client_port]);
        case 'empty': return '';
        case 'leave': global $leaving; $leaving = true; return 'left';
        case 'warn ': return $undefined . 'warned';
        case 'throw': throw new Exception('thrown on purpose');
        case 'exit ': exit(3);
        case 'large': return str_repeat('x', 1048577);
        case 'sleep': usleep(1000 * (int) substr($request, 5)); return 'slept';
        case 'delay': usleep(40000); break;
    }
    return "You said '" . $request . "'";
}
$ARCANGELO_USERSPACE = ['on_init' => 'on_init', 'on_start' => 'on_start', 'on_stop' => 'on_stop', 'on_handle' => 'on_handle'];
"""

PYTHON = r"""
import json, os, resource, sys, time
import arca

def on_init():
    arca.log("loaded")

leaving = False

def on_stop():
    if leaving:
        sys.exit()

def on_handle(request):
    global leaving
    print("noise on stdout")
    word = request[:5]
    if word == b"leave":
        leaving = True
        return b"left"
    if word == b"about":
        return json.dumps([arca.token.hex(), arca.guid.hex(), arca.client_ip, arca.client_port]).encode()
    if word == b"empty":
        return b""
    if word == b"warn ":
        print("a warning", file=sys.stderr)
        return b"warned"
    if word == b"throw":
        raise ValueError("thrown on purpose")
    if word == b"exit ":
        os._exit(3)
    if word == b"large":
        return bytes(1048577)
    if word == b"sleep":
        time.sleep(int(request[5:]) / 1000)
        return b"slept"
    if word == b"fill ":
        return bytes(1_000_000)
    if word == b"delay":
        time.sleep(0.04)
    if word == b"right":
        limits = [resource.getrlimit(each)[0] for each in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC)]
        return json.dumps([limits, sorted(os.environ), os.listdir("/proc/self/fd")]).encode()
    return b"You said '" + request + b"'"
"""

# As somebody would write it who has only read what the original's daemon says to its workers.
PROGRAM = r"""
import struct, sys
read, write = sys.stdin.buffer.read, sys.stdout.buffer.write
while kind := read(1):
    read(8)
    if kind == b"\1":
        read(struct.unpack("=I", read(4))[0])
        write(b"\1")
    elif kind == b"\3":
        request = read(struct.unpack("=I", read(4))[0])
        write(b"\4" + struct.pack("=I", len(request)) + request[::-1])
    else:
        write(b"\3")
    sys.stdout.buffer.flush()
"""


class MegakiTestCase(TestCase):
    """A server in a process of its own, and clients in this one."""

    timeout = 60
    script = ("python", PYTHON)

    def setUp(self) -> None:
        """A folder with key and script."""
        # Not below the checkout: another user has to be able to read the script.
        folder = tempfile.TemporaryDirectory(prefix="mikanet-megaki-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.folder.chmod(0o755)
        write_private_file(self.folder / "key", rsa_oaep.private_to_pem(SERVER_KEY))
        (self.folder / "cert").write_bytes(rsa_oaep.public_to_raw(SERVER_KEY.public_key()))
        kind, text = self.script
        self.file = self.folder / f"worker.{kind}"
        self.file.write_text(text)
        self.file.chmod(0o644)
        self.worker = f"{kind}:{self.file}"

    def serve(self, *options: str, worker: str = "") -> None:
        """Start the server."""
        self.port = free_port()
        self.server = TwistdProcess(
            [
                "megaki-server",
                f"--listen=tcp:{self.port}:interface=127.0.0.1:backlog=4096",
                f"--key={self.folder / 'key'}",
                f"--worker={worker or self.worker}",
                f"--state-dir={self.folder / 'state'}",
                "--syn-rate=0",
                *options,
            ],
            ports=[self.port],
        )
        self.addCleanup(self.server.stop, 5)

    def client(self, source: str = "127.0.0.1") -> Sazukari:
        """A client with a ready key."""
        keys = KeyStock(65537, run=lambda *_: succeed(CLIENT_KEY))
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port, bindAddress=(source, 0))
        return Sazukari(reactor, endpoint, SERVER_KEY.public_key(), keys=keys)

    async def session(self, source: str = "127.0.0.1") -> Session:
        """A session that is closed at the end."""
        session = await self.client(source).connect()
        self.addCleanup(session.close)
        return session

    def children(self) -> list[tuple[int, str]]:
        """The server's child processes: pid and state."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[1]) == self.server.pid:
                    found.append((int(entry), fields[0]))
        return found

    def wait(self, seconds: float) -> Deferred[None]:
        """Let the reactor run."""
        done: Deferred[None] = Deferred()
        reactor.callLater(seconds, done.callback, None)
        return done

    async def wait_for_workers(self, count: int, seconds: float = 10.0) -> float:
        """Until so many live workers are there; how long it took."""
        since = time.monotonic()
        while sum(state != "Z" for _, state in self.children()) != count:
            if time.monotonic() - since > seconds:
                raise AssertionError(f"{self.children()}\n{self.server.output}")
            await self.wait(0.02)
        return time.monotonic() - since

    async def gather(self, *jobs: Coroutine[Any, Any, Any]) -> list[Any]:
        """All results, in order."""
        return await defer.gatherResults([Deferred.fromCoroutine(job) for job in jobs], consumeErrors=True)


def state_of(pid: int) -> str:
    """The state of a process as one letter; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


class PythonWorkerTests(MegakiTestCase):
    """Python files as workers; the same questions as for PHP below."""

    async def test_script(self) -> None:
        """Requests and answers of all sizes, who asks, and output that is in nobody's way."""
        self.serve()
        session = await self.session()
        for size in (1, 64, 4016, 4017, 20_000, 1048565):
            request = random.Random(size).randbytes(size)
            self.assertEqual(await session.send_message(request), b"You said '" + request + b"'")
        self.assertEqual(await session.send_message(b"empty"), b"")
        self.assertEqual(await session.send_message(b"warn "), b"warned")
        token, guid, host, port = json.loads(await session.send_message(b"about"))
        self.assertEqual((token, host), (session.saved.token.hex(), "127.0.0.1"))
        self.assertEqual(port, session.transport.getHost().port)
        self.assertEqual(len(guid), 16)
        self.assertIn("noise on stdout", self.server.output)

    async def test_failures(self) -> None:
        """An exception, a too long answer and a death cost one request each; the worker of the first two lives on."""
        self.serve("--workers=1")
        session = await self.session()
        await session.send_message(b"hello")
        before = [pid for pid, _ in self.children()]
        for request in (b"throw", b"large"):
            await self.assertFailure((await self.session()).send_message(request), SessionLostError)
        self.assertEqual([pid for pid, _ in self.children()], before)
        self.assertIn("thrown on purpose", self.server.output)
        since = time.monotonic()
        await self.assertFailure((await self.session()).send_message(b"exit "), SessionLostError)
        self.assertLess(time.monotonic() - since, 1.0)
        self.assertEqual(await session.send_message(b"hello"), b"You said 'hello'")

    async def test_last_answer(self) -> None:
        """A worker that leaves right after its answer has given it, every time."""
        self.serve("--workers=2")
        for _ in range(10):
            session = await self.session()
            self.assertEqual(await session.send_message(b"leave"), b"left")
            await session.close()
            await self.wait_for_workers(2)

    #: Lines that make a child in a handler; the child comes back from the handler after a while, with an answer.
    forking = """
import os, time
def on_handle(request):
    if request == b"fork":
        if not os.fork():
            time.sleep(0.3)
            return b"a child's answer"
        return b"forked"
    return b"own " + request
"""

    #: Lines whose request sets an alarm of one second, that another one meets.
    alarming = """
import signal, time
def on_handle(request):
    if request == b"alarm":
        signal.alarm(1)
        return b"set"
    time.sleep(1.5)
    return b"own " + request
"""

    async def test_children_have_no_channel(self) -> None:
        """The child of a script comes back from the handler: nobody gets what it says, and its parent serves on."""
        require_root()  # others' scripts can start no process
        self.file.write_text(self.forking)
        self.serve("--workers=1")
        for number in range(5):
            session = await self.session()
            self.assertEqual(await session.send_message(b"fork"), b"forked")
            request = b"%d" % number
            for _ in range(4):
                self.assertEqual(await session.send_message(request), b"own " + request)
                await self.wait(0.1)
        self.assertEqual(self.server.output.count("is gone"), 0, self.server.output)
        self.assertNotIn("Traceback", self.server.output)

    async def test_alarms(self) -> None:
        """What one request sets does not end a later one."""
        self.file.write_text(self.alarming)
        self.serve("--workers=1")
        session = await self.session()
        self.assertEqual(await session.send_message(b"alarm"), b"set")
        self.assertEqual(await session.send_message(b"later"), b"own later")
        self.assertNotIn("is gone", self.server.output)

    async def test_orphans(self) -> None:
        """Workers end with a server that is killed, also one that is in the middle of a request."""
        self.serve("--workers=2")
        session = await self.session()
        await session.send_message(b"hello")
        workers = [pid for pid, _ in self.children()]
        session.send_message(b"sleep9000").addErrback(lambda _: None)
        await self.wait(0.1)
        os.kill(self.server.pid, signal.SIGKILL)
        for _ in range(100):
            if not any(state_of(pid) not in ("", "Z") for pid in workers):
                break
            await self.wait(0.05)
        self.assertEqual([state_of(pid) for pid in workers if state_of(pid) not in ("", "Z")], [])


class PhpWorkerTests(PythonWorkerTests):
    """PHP scripts as the original's, unchanged."""

    script = ("php", PHP)

    forking = r"""<?php
function on_handle() {
    if (arca::$request === 'fork') {
        if (!pcntl_fork()) {
            usleep(300000);
            return "a child's answer";
        }
        return 'forked';
    }
    return 'own ' . arca::$request;
}
$ARCANGELO_USERSPACE = ['on_handle' => 'on_handle'];
"""

    alarming = r"""<?php
function on_handle() {
    if (arca::$request === 'alarm') {
        set_time_limit(1);
        return 'set';
    }
    $until = microtime(true) + 2.5;
    while (microtime(true) < $until) { md5('x'); }
    return 'own ' . arca::$request;
}
$ARCANGELO_USERSPACE = ['on_handle' => 'on_handle'];
"""

    def setUp(self) -> None:
        """PHP is needed."""
        require_program("php")
        super().setUp()


class SurroundingTests(MegakiTestCase):
    """What is around a worker's requests."""

    async def test_slow_start(self) -> None:
        """A script that takes its time to load is waited for as long as the operator says; the message names the option."""
        self.file.write_text(
            "import time\ndef on_init():\n    time.sleep(1)\ndef on_handle(request):\n    return b'up'\n"
        )
        self.serve("--workers=1", "--start-time=0.5")
        for _ in range(100):
            if "--start-time" in self.server.output:
                break
            await self.wait(0.05)
        self.assertIn("--start-time", self.server.output)
        self.server.stop(5)
        self.serve("--workers=1", "--start-time=5")
        self.assertEqual(await (await self.session()).send_message(b"q"), b"up")

    async def test_variables(self) -> None:
        """Workers get the variables that the operator names, and get no rights by starting programs."""
        self.file.write_text(
            "import os\ndef on_handle(request):\n    status = open('/proc/self/status').read()\n"
            "    return repr((os.environ.get('GIVEN'), 'NoNewPrivs:\\t1' in status)).encode()\n"
        )
        self.serve("--workers=1", "--worker-env=GIVEN=some value")
        self.assertEqual(await (await self.session()).send_message(b"q"), b"('some value', True)")

    async def test_modules_are_read_anew(self) -> None:
        """After a reload a module that was changed within its second, with its size kept, is the new one."""
        module = self.folder / "part.py"
        module.write_text("VALUE = b'old'\n")
        self.file.write_text("import part\ndef on_handle(request):\n    return part.VALUE\n")
        os.utime(module, (1_700_000_000, 1_700_000_000))
        self.serve("--workers=1")
        session = await self.session()
        self.assertEqual(await session.send_message(b"q"), b"old")
        module.write_text("VALUE = b'new'\n")
        os.utime(module, (1_700_000_000, 1_700_000_000))
        self.server.signal(signal.SIGHUP)
        for _ in range(100):
            if await session.send_message(b"q") == b"new":
                return
            await self.wait(0.05)
        self.fail("still the old one")

    async def test_daemons_left_behind(self) -> None:
        """What a worker left behind, out of its reach, keeps no pipe of the server open once the worker is gone."""
        require_root()
        self.file.write_text(
            "import os, time\ndef on_handle(request):\n    if not os.fork():\n        os.setsid()\n        time.sleep(20)\n"
            "        os._exit(0)\n    os._exit(1)\n"
        )
        self.serve("--workers=1")
        await (await self.session()).close()
        before = len(os.listdir(f"/proc/{self.server.pid}/fd"))
        for _ in range(5):
            await self.assertFailure((await self.session()).send_message(b"q"), SessionLostError)
        await self.wait(2)
        self.assertLessEqual(len(os.listdir(f"/proc/{self.server.pid}/fd")), before + 2)

    async def test_banner(self) -> None:
        """What a program says unasked is shown, with what to do about it."""
        program = self.folder / "program.py"
        program.write_text("print('Welcome to my worker', flush=True)\n" + PROGRAM)
        self.serve("--workers=1", worker=f"exec:{require_program('python3')} {program}")
        for _ in range(100):
            if "Welcome" in self.server.output:
                break
            await self.wait(0.05)
        self.assertIn("Welcome to my worker", self.server.output)
        self.assertIn("print to standard error", self.server.output)


class ProgramTests(MegakiTestCase):
    """Any program that speaks the original's worker protocol on stdin and stdout."""

    async def test_program(self) -> None:
        """It answers, small and large requests."""
        program = self.folder / "program.py"
        program.write_text(PROGRAM)
        self.serve(worker=f"exec:{require_program('python3')} {program}")
        session = await self.session()
        for size in (1, 8000, 1048576):
            request = random.Random(size).randbytes(size)
            self.assertEqual(await session.send_message(request), request[::-1])


class HowtoTests(MegakiTestCase):
    """The examples of the documentation."""

    async def check(self, worker: str, *expected: str) -> None:
        """The client's example against a worker's."""
        self.serve("--workers=1", worker=worker)
        example = [str(HOWTO / "megaki_client.py"), f"tcp:127.0.0.1:{self.port}", str(self.folder / "cert")]
        out, error, status = await getProcessOutputAndValue(
            sys.executable, example, env={"PYTHONPATH": str(ROOT)}, reactor=reactor
        )
        self.assertEqual((out.decode().splitlines(), status), (list(expected), 0), error)

    async def test_python(self) -> None:
        """The Python worker and the client say what the page says."""
        await self.check(
            f"python:{HOWTO / 'megaki_worker.py'}",
            "HELLO from 127.0.0.1, my number 1",
            "HELLO AGAIN from 127.0.0.1, my number 2",
        )

    async def test_php(self) -> None:
        """So do the PHP worker and the client."""
        require_program("php")
        worker = f"php:{HOWTO / 'megaki-worker.php'}"
        await self.check(worker, "HELLO from 127.0.0.1", "HELLO AGAIN from 127.0.0.1")


class RightsTests(MegakiTestCase):
    """What a worker may do (K9)."""

    async def test_launcher(self) -> None:
        """Another user, no groups, and every limit, as the kernel has them."""
        require_root()
        command = WorkerCommand(Kind.PYTHON, ["/bin/cat", "/proc/self/status", "/proc/self/limits"], "/", 65534)
        program, *arguments = command.command_line()
        out, error, _ = await getProcessOutputAndValue(program, arguments, env={}, reactor=reactor)
        words = {line.split(b":")[0]: line.split()[1:] for line in out.splitlines() if b":" in line}
        self.assertEqual((words[b"Uid"], words[b"Gid"]), ([b"65534"] * 4, [b"65534"] * 4), error)
        self.assertEqual(words[b"Groups"], [])
        for name, limit in ((b"Max address space", b"268435456"), (b"Max open files", b"64"), (b"Max processes", b"0")):
            (line,) = [line for line in out.splitlines() if line.startswith(name)]
            self.assertEqual(line[len(name) :].split()[:2], [limit, limit])

    async def test_group(self) -> None:
        """A worker has its user's own group, not the one that has the user's number; without an entry, none that owns."""
        require_root()
        user = next(each for each in pwd.getpwall() if each.pw_uid not in (0, each.pw_gid))
        for uid, group in ((user.pw_uid, user.pw_gid), (4_000_000, 65534)):
            program, *arguments = WorkerCommand(Kind.PYTHON, ["/bin/cat", "/proc/self/status"], "/", uid).command_line()
            out, error, _ = await getProcessOutputAndValue(program, arguments, env={}, reactor=reactor)
            words = {line.split(b":")[0]: line.split()[1:] for line in out.splitlines() if b":" in line}
            self.assertEqual((words[b"Uid"], words[b"Gid"]), ([b"%d" % uid] * 4, [b"%d" % group] * 4), error)

    async def test_surroundings(self) -> None:
        """A clean environment, limits, and no descriptor but its own."""
        self.serve("--worker-memory=300")
        session = await self.session()
        limits, environment, descriptors = json.loads(await session.send_message(b"right"))
        self.assertEqual(limits, [300 * 1024 * 1024, 64, 0])
        self.assertTrue(set(environment) <= {"PATH", "LANG", "LC_ALL", "TZ", "LC_CTYPE"}, environment)
        self.assertLessEqual(len(descriptors), 6)  # 0 to 4, and the one that lists them


class KillStormTests(MegakiTestCase):
    """Workers that are killed at work."""

    async def test_kill_storm(self) -> None:
        """Workers killed 5 times a second under 50 requests a second: each request gets its right answer or one error."""
        self.serve("--max-requests=60")
        await self.wait_for_workers(4)
        rng = random.Random(3)
        outcomes: list[str] = []
        slowest = [0.0]
        client = self.client()

        async def ask(number: int) -> None:
            await self.wait(number / 50)
            nonce = b"delay" + os.urandom(32)
            session = await client.connect()
            since = time.monotonic()
            try:
                answer = await session.send_message(nonce)
                outcomes.append("right" if answer == b"You said '" + nonce + b"'" else "crossed")
            except SessionLostError:
                outcomes.append("error")
            slowest[0] = max(slowest[0], time.monotonic() - since)
            await session.close()

        async def kill() -> None:
            for _ in range(20):
                await self.wait(0.2)
                alive = [pid for pid, state in self.children() if state != "Z"]
                if alive:
                    os.kill(rng.choice(alive), signal.SIGKILL)

        await self.gather(kill(), *(ask(number) for number in range(200)))
        self.assertEqual(len(outcomes), 200)
        self.assertNotIn("crossed", outcomes)
        self.assertIn("error", outcomes)  # some workers were killed at work
        self.assertGreater(outcomes.count("right"), 150)
        self.assertLess(slowest[0], 10.0)
        self.assertLess(await self.wait_for_workers(4), 1.0)
        self.assertNotIn("Z", [state for _, state in self.children()])


class PhpKillStormTests(KillStormTests):
    """The same with PHP."""

    script = ("php", PHP)

    def setUp(self) -> None:
        """PHP is needed."""
        require_program("php")
        super().setUp()


class TroubleTests(MegakiTestCase):
    """Workers that die and stall."""

    async def test_stall(self) -> None:
        """A stalled worker is killed at the deadline, with an error for its request, and its place is taken."""
        self.serve("--request-time=1", "--workers=1")
        await self.wait_for_workers(1)
        session = await self.session()
        since = time.monotonic()
        await self.assertFailure(session.send_message(b"sleep20000"), SessionLostError)
        self.assertTrue(0.9 < time.monotonic() - since < 3.0)
        self.assertEqual(await (await self.session()).send_message(b"x"), b"You said 'x'")

    async def test_three_of_four_busy(self) -> None:
        """While three of four workers are busy, others get their answers at once: p99 within 200 ms."""
        self.serve()
        await self.wait_for_workers(4)
        busy = [(await self.session()).send_message(b"sleep2500") for _ in range(3)]
        session = await self.session()
        times = []
        for _ in range(200):
            since = time.monotonic()
            await session.send_message(b"quick")
            times.append(time.monotonic() - since)
        self.assertLessEqual(sorted(times)[-3], 0.2)
        self.assertFalse(busy[0].called)
        self.assertEqual(await defer.gatherResults(busy), [b"slept"] * 3)

    async def test_many_sessions_of_one_address(self) -> None:
        """While 120 sessions of one address resume and ask without end, a client of another network gets every answer."""
        self.serve("--max-unverified-per-address=1000", "--resume-rate=0")
        await self.wait_for_workers(4)
        going = True
        asked = 0

        async def noisy() -> None:
            nonlocal asked
            client = self.client("127.0.0.1")
            session = await client.connect()
            while going:
                asked += 1
                saved = session.saved
                try:
                    await session.send_message(b"delay")
                except (SessionLostError, TimedOutError):
                    pass
                await session.close()
                await self.wait(0.01)
                session = await client.resume(saved)

        jobs = [Deferred.fromCoroutine(noisy()) for _ in range(120)]
        for job in jobs:
            job.addErrback(
                lambda failure: failure.trap(
                    CancelledError, SessionLostError, TimedOutError, ConnectionLost, ConnectingCancelledError
                )
            )
        await self.wait(3)
        honest = self.client("127.0.1.1")
        times = []
        before = asked
        for _ in range(12):
            since = time.monotonic()
            session = await honest.connect()
            self.assertEqual(await session.send_message(b"honest"), b"You said 'honest'")
            await session.close()
            times.append(time.monotonic() - since)
        going = False
        self.assertGreater(asked - before, 100)
        for job in jobs:
            job.cancel()
        self.assertLess(sorted(times)[-1], 2.0, times)

    async def test_reload(self) -> None:
        """SIGHUP under load: every request is answered, first by the old script, at the end by the new one."""
        # No worker is replaced for its age here, so that the new script can only come by the signal.
        self.serve("--max-requests=1000000")
        while self.server.output.count("loaded") < 4:
            await self.wait(0.02)
        session = await self.session()
        answers = []
        self.file.write_text("def on_handle(request): return b'new'\n")
        for number in range(3000):
            answers.append(await session.send_message(b"x"))
            if number == 50:
                self.server.signal(signal.SIGHUP)
            if answers[-20:] == [b"new"] * 20:
                break
        self.assertEqual(set(answers), {b"You said 'x'", b"new"})
        self.assertEqual(answers[-20:], [b"new"] * 20)

    async def test_slow_reader(self) -> None:
        """Who asks and does not read costs the server one answer, others nothing, and is cut when the idle time is over."""
        self.serve("--idle-time=2")
        other = await self.session()
        await other.send_message(b"x")
        before = rss(self.server.pid)
        connection = socket.create_connection(("127.0.0.1", self.port))
        self.addCleanup(connection.close)
        client = ClientYami(os.urandom)
        connection.sendall(client.connect(SERVER_KEY.public_key(), CLIENT_KEY))
        while client.state is not State.READY:
            client.feed(await deferToThread(connection.recv, 1000))
            event = client.next_event()
            if isinstance(event, Reply):
                connection.sendall(event.reply)
        for _ in range(60):
            connection.sendall(client.send_message(b"fill "))
            client.state = State.READY  # without waiting for the answer
        for _ in range(40):
            await self.wait(0.1)
            self.assertEqual(await other.send_message(b"x"), b"You said 'x'")
        self.assertLess(rss(self.server.pid) - before, 20_000_000)
        connection.settimeout(10)
        with self.assertRaises(ConnectionResetError):
            while await deferToThread(connection.recv, 1 << 20):
                pass

    async def test_no_process_left(self) -> None:
        """When the server ends its workers are gone, the busy one and what it started included."""
        self.serve("--drain-time=0")
        await self.wait_for_workers(4)
        session = await self.session()
        session.send_message(b"sleep20000").addErrback(lambda _: None)
        await self.wait(0.2)
        pids = [pid for pid, _ in self.children()]
        self.server.signal(signal.SIGKILL)  # not even a chance to clean up: the workers see the end of their input
        await self.wait(0.5)
        left = [pid for pid in pids if state_of(pid) not in ("", "Z")]
        self.assertLessEqual(len(left), 1)  # the one that sleeps
        for pid in left:
            os.kill(pid, signal.SIGKILL)


class FloodTests(MegakiTestCase):
    """Strangers."""

    def syn(self) -> bytes:
        """A good SYN; one is as good as another."""
        return ClientYami(os.urandom).connect(SERVER_KEY.public_key(), CLIENT_KEY)

    def stranger(self, source: str, data: bytes) -> socket.socket:
        """A connection that has sent something, and never reads."""
        connection = socket.create_connection(("127.0.0.1", self.port), source_address=(source, 0))
        connection.sendall(data)
        self.addCleanup(connection.close)
        return connection

    async def test_syn_flood(self) -> None:
        """A flood of SYNs from one /24: a session that stands has its answers, and another network connects."""
        self.serve("--syn-rate=5", "--max-unverified-per-address=10000", "--max-unverified=10000")
        session = await self.session("127.20.0.1")
        syn = self.syn()
        times = []
        for number in range(600):
            self.stranger(f"127.30.0.{number % 250 + 1}", syn)
            if number % 3 == 0:
                since = time.monotonic()
                self.assertEqual(await session.send_message(b"x"), b"You said 'x'")
                times.append(time.monotonic() - since)
        self.assertLess(sorted(times)[-3], 0.2)
        await self.session("127.40.0.1")

    async def test_half_handshakes(self) -> None:
        """2,500 handshakes left half done, then 30 clients: all of them get through."""
        self.serve("--max-unverified-per-address=10000", "--max-unverified=100000")
        syn = self.syn()
        for number in range(2500):
            self.stranger(f"127.{50 + number // 250}.{number % 250}.1", syn)
            if number % 50 == 0:
                await self.wait(0)
        await self.wait(2)  # no more SYNs wait for a thread
        answers = await self.gather(*(self.one(f"127.90.{number}.1") for number in range(30)))
        self.assertEqual(answers, [b"You said 'x'"] * 30)

    async def test_quest(self) -> None:
        """A round of 2,500 half handshakes that are all served, and one of as many at once: no client and no answer lost."""
        self.patch(progress, "enabled", False)
        result = await deferToThread(lambda: asyncio.run(quest(24.0, 8.0)))
        self.assertEqual(result.faults, [])
        self.assertGreaterEqual(result.figures["rounds"], 2)
        self.assertGreater(result.figures["half open"], 2500)

    async def one(self, source: str) -> bytes:
        """One request of a new client."""
        return await (await self.session(source)).send_message(b"x")


class GatewayTests(MegakiTestCase):
    """``twistd megaki-client`` under curl."""

    def gateway(self, *options: str) -> None:
        """Start it."""
        self.http = free_port()
        gateway = TwistdProcess(
            [
                "megaki-client",
                f"--server=tcp:127.0.0.1:{self.port}",
                f"--server-key={self.folder / 'cert'}",
                f"--listen-http=tcp:{self.http}:interface=127.0.0.1",
                *options,
            ],
            ports=[self.http],
        )
        self.addCleanup(gateway.stop, 5)

    async def curl(self, *arguments: str) -> tuple[bytes, int]:
        """Body and status."""
        fixed = ["-q", "-s", "--noproxy", "*", "--max-time", "30", "-w", "\n%{http_code}"]
        command = [*fixed, *arguments, f"http://127.0.0.1:{self.http}/"]
        out, _, _ = await getProcessOutputAndValue(require_program("curl"), command, env={}, reactor=reactor)
        body, _, status = out.rpartition(b"\n")
        return body, int(status)

    async def test_gateway(self) -> None:
        """Answers as bodies; a lost answer is 502, a late one 504, no server 503, each with a reason; then it recovers."""
        self.serve()
        self.gateway("--request-time=1")
        self.assertEqual(await self.curl("-d", "hello"), (b"You said 'hello'", 200))
        big = self.folder / "big"
        big.write_bytes(bytes(1048565))
        body, status = await self.curl("--data-binary", f"@{big}")
        self.assertEqual((len(body), status), (1048576, 200))
        self.assertEqual(await self.curl("-d", "empty"), (b"", 200))
        body, status = await self.curl("-d", "throw")
        self.assertEqual(status, 502)
        self.assertIn(b"closed", body)
        body, status = await self.curl("-d", "sleep9000")
        self.assertEqual(status, 504)
        self.assertIn(b"time", body)
        self.assertEqual((await self.curl("-d", "again"))[1], 200)
        self.server.kill()
        body, status = await self.curl("-d", "x")
        self.assertEqual(status, 503)
        self.assertIn(b"no session", body)
