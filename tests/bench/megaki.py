"""Megaki's figures, with nginx and php-fpm over TLS beside them: ``python -m tests.bench.megaki``.

Server, four PHP workers and the load share the machine. The load is one process that speaks through
:class:`mikanet.megaki.yami.ClientYami` on plain sockets, so that what is measured is the server. Both backends run the
same PHP script. Each round measures everything once, in turn; medians are printed. With ``--quiet SHARE`` a figure is measured
again until other programs used no more than that share of a processor meanwhile, which the last column says.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import select
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from mikanet.crypto import rsa_oaep
from mikanet.megaki.sealing import SavedSession
from mikanet.megaki.yami import ClientYami, Reply, Response
from mikanet.service.secret_files import write_private_file
from tests.support.peers import require_program
from tests.support.processes import Process, TwistdProcess, cpu, free_port

SCRIPT = r"""<?php
function on_init() { }
function on_start() { }
function on_stop() { }
function on_handle() { return arca::$request; }
$ARCANGELO_USERSPACE = ['on_init' => 'on_init', 'on_start' => 'on_start', 'on_stop' => 'on_stop', 'on_handle' => 'on_handle'];
"""

#: Runs the same script behind php-fpm.
FPM_PAGE = r"""<?php
class arca { static $request; }
require __DIR__ . '/worker.php';
arca::$request = file_get_contents('php://input');
header('Content-Type: application/octet-stream');
echo $ARCANGELO_USERSPACE['on_handle']();
"""

CONCURRENCY = (1, 8)
SIZES = (64, 8192)

#: Processors of this machine, and how often to wait, and to measure, for quiet.
CPUS, TRIES = os.cpu_count() or 1, 5

#: A lane of load: yields the socket that it waits for, is sent what came, and calls back once for each operation.
Lane = Generator[socket.socket, bytes, None]
Done = Callable[[], None]
Rates = dict[str, float]


class Megaki:
    """Our server, with lanes of load for it."""

    name = "mikanet megaki"

    def __init__(self, folder: Path, worker: str) -> None:
        self.key = rsa_oaep.generate()
        self.client_key = rsa_oaep.generate()
        self.public = self.key.public_key()
        self.port = free_port()
        write_private_file(folder / "key", rsa_oaep.private_to_pem(self.key))
        self.process = TwistdProcess(
            [
                "megaki-server",
                f"--listen=tcp:{self.port}:interface=127.0.0.1:backlog=4096",
                f"--key={folder / 'key'}",
                f"--worker={worker}",
                f"--state-dir={folder / 'state'}",
                "--workers=4",
                "--syn-rate=0",
                "--max-unverified=100000",
                "--max-unverified-per-address=100000",
                "--max-connections=100000",
                "--max-requests=1000000000",  # neither the original nor php-fpm replaces its workers unasked
            ],
            ports=[self.port],
        )
        time.sleep(1.0)

    def pids(self) -> list[int]:
        """The server and its workers."""
        return [self.process.pid, *children(self.process.pid)]

    def stop(self) -> None:
        """End it."""
        self.process.stop()

    def _connect(self) -> socket.socket:
        connection = socket.socket()  # create_connection asks the resolver each time
        connection.connect(("127.0.0.1", self.port))
        return connection

    def _shake(self, connection: socket.socket, yami: ClientYami) -> Lane:
        connection.sendall(yami.connect(self.public, self.client_key))
        while True:
            yami.feed((yield connection))
            while (event := yami.next_event()) is not None:
                if not isinstance(event, Reply):
                    return
                connection.sendall(event.reply)

    def _resume(self, connection: socket.socket, yami: ClientYami, saved: SavedSession) -> Lane:
        connection.sendall(yami.resume(saved))
        while True:
            yami.feed((yield connection))
            if yami.next_event() is not None:
                return

    def handshakes(self, done: Done) -> Lane:
        """A handshake on a new connection, again and again; the client's RSA key is ready."""
        while True:
            yami = ClientYami(os.urandom)
            with self._connect() as connection:
                yield from self._shake(connection, yami)
                done()

    def resumes(self, done: Done) -> Lane:
        """A resumption on a new connection, again and again."""
        yami = ClientYami(os.urandom)
        with self._connect() as connection:
            yield from self._shake(connection, yami)
        while True:
            saved, yami = yami.saved, ClientYami(os.urandom)
            with self._connect() as connection:
                yield from self._resume(connection, yami, saved)
                done()

    def messages(self, size: int, done: Done) -> Lane:
        """Requests of so many bytes in a session, which is resumed when its key is spent."""
        request = os.urandom(size)
        yami, connection = ClientYami(os.urandom), self._connect()
        yield from self._shake(connection, yami)
        while True:
            connection.sendall(yami.send_message(request))
            event = None
            while event is None:
                yami.feed((yield connection))
                event = yami.next_event()
            assert isinstance(event, Response)
            assert event.plain == request
            done()
            if yami.spent:
                saved = yami.saved
                connection.close()
                yami, connection = ClientYami(os.urandom), self._connect()
                yield from self._resume(connection, yami, saved)


class Nginx:
    """nginx and php-fpm over TLS with keep-alive: four workers, the same script."""

    name = "nginx + php-fpm over TLS"

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        (folder / "page.php").write_text(FPM_PAGE)
        run = [require_program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        run += ["-subj", "/CN=localhost", "-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.pem")]
        subprocess.run(run, check=True, capture_output=True)
        (folder / "fpm.conf").write_text(
            f"[global]\nerror_log = {folder}/fpm.log\ndaemonize = no\n[www]\nuser = {os.geteuid()}\n"
            f"group = {os.getegid()}\nlisten = {folder}/fpm.sock\npm = static\npm.max_children = 4\n"
        )
        (folder / "nginx.conf").write_text(
            f"daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; worker_processes 1;\n"
            + ("user root;\n" if os.geteuid() == 0 else "")
            + "events { worker_connections 1024; }\n"
            f"http {{ access_log off; client_body_temp_path {folder}/t1; fastcgi_temp_path {folder}/t2;\n"
            f"proxy_temp_path {folder}/t3; uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;\n"
            "client_body_buffer_size 64k; fastcgi_buffers 16 16k; fastcgi_buffer_size 16k; keepalive_requests 10000000;\n"
            f"upstream fpm {{ server unix:{folder}/fpm.sock; keepalive 8; }}\n"
            f"server {{ listen 127.0.0.1:{self.port} ssl; ssl_certificate {folder}/tls.pem;\n"
            f"ssl_certificate_key {folder}/tls.key; location / {{ fastcgi_pass fpm; fastcgi_keep_conn on;\n"
            f"fastcgi_param SCRIPT_FILENAME {folder}/page.php; fastcgi_param REQUEST_METHOD $request_method;\n"
            "fastcgi_param CONTENT_TYPE $content_type; fastcgi_param CONTENT_LENGTH $content_length; } } }\n"
        )
        self.fpm = Process([fpm_program(), "-F", "-R", "-y", str(folder / "fpm.conf")])
        deadline = time.monotonic() + 10
        while not (folder / "fpm.sock").exists():
            if time.monotonic() > deadline or not self.fpm.alive:
                raise RuntimeError(f"php-fpm did not start\n{self.fpm.output}")
            time.sleep(0.05)
        self.nginx = Process([require_program("nginx"), "-c", str(folder / "nginx.conf")], ports=[self.port])
        self.context = ssl.create_default_context(cafile=str(folder / "tls.pem"))

    def pids(self) -> list[int]:
        """All processes of both."""
        return [pid for each in (self.nginx, self.fpm) for pid in (each.pid, *children(each.pid))]

    def stop(self) -> None:
        """End both."""
        self.nginx.stop()
        self.fpm.stop()

    def messages(self, size: int, done: Done) -> Lane:
        """POSTs of so many bytes on one connection."""
        body = os.urandom(size)
        head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode()
        plain = socket.create_connection(("127.0.0.1", self.port))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = self.context.wrap_socket(plain, server_hostname="localhost")
        while True:
            connection.sendall(head + body)
            got = b""
            while not got.endswith((body, b"0\r\n\r\n")):
                got += yield connection
            assert body in got or size > 4096, got[:200]
            done()


#: Figures of a measurement beside its rate: name, width and digits.
_COLUMNS = (("p50_ms", 8, 2), ("p99_ms", 8, 2), ("server_us", 9, 0), ("all_us", 8, 0), ("others", 8, 2))


def fpm_program() -> str:
    """php-fpm under the name that this Debian gives it."""
    for folder in ("/usr/sbin", "/usr/local/sbin"):
        for found in sorted(Path(folder).glob("php-fpm*")):
            return str(found)
    return require_program("php-fpm")


def children(pid: int) -> list[int]:
    """Child processes."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def drive(make_lane: Callable[[Done], Lane], concurrency: int, seconds: float) -> tuple[float, list[float]]:
    """Operations a second, and how long each took in seconds."""
    times: list[float] = []
    lanes: dict[int, tuple[Lane, socket.socket]] = {}
    poll = select.epoll()

    def counter() -> Done:
        last = [time.perf_counter()]

        def done() -> None:
            now = time.perf_counter()
            times.append(now - last[0])
            last[0] = now

        return done

    def wait_for(lane: Lane, connection: socket.socket) -> None:
        lanes[connection.fileno()] = (lane, connection)
        if concurrency > 1:
            poll.register(connection.fileno(), select.EPOLLIN)

    for _ in range(concurrency):
        lane = make_lane(counter())
        wait_for(lane, next(lane))
    begin = end = time.perf_counter()
    warm = begin + 0.3
    counted = 0
    while end < warm + seconds:
        # A lane by itself waits in recv().
        for descriptor, _ in poll.poll() if concurrency > 1 else [(each, 0) for each in lanes]:
            lane, connection = lanes.pop(descriptor)
            data = connection.recv(65536)
            if not data:
                raise RuntimeError("the server closed")
            following = lane.send(data)
            if following.fileno() == descriptor and following is connection:
                lanes[descriptor] = (lane, connection)
            else:
                with suppress(OSError):  # it may be closed, which has the same effect
                    poll.unregister(descriptor)
                wait_for(lane, following)
        end = time.perf_counter()
        if end < warm:
            counted = len(times)
    for lane, connection in lanes.values():
        lane.close()
        connection.close()
    poll.close()
    measured = times[counted:]
    return len(measured) / (end - warm), sorted(measured)


def measure(backend: Any, make_lane: Callable[[Done], Lane], concurrency: int, seconds: float) -> Rates:
    """Rate, p50 and p99 in ms, CPU of the backend in microseconds an operation, and what others used of a processor."""
    pids = backend.pids()
    before = {pid: cpu(pid) for pid in pids}
    begin, busy, own = time.monotonic(), machine_cpu(), time.process_time()
    rate, times = drive(make_lane, concurrency, seconds)
    used = {pid: cpu(pid) - before[pid] for pid in pids}
    others = machine_cpu() - busy - (time.process_time() - own) - sum(used.values())
    operations = rate * (seconds + 0.3)
    return {
        "rate": rate,
        "p50_ms": times[len(times) // 2] * 1e3,
        "p99_ms": times[len(times) * 99 // 100] * 1e3,
        "server_us": used[pids[0]] / operations * 1e6,
        "all_us": sum(used.values()) / operations * 1e6,
        "others": others / (time.monotonic() - begin),
    }


def quietly(quiet: float, measure_once: Callable[[], Rates]) -> Rates:
    """A measurement during which others used at most this share of a processor, or the quietest of many."""
    best: Rates = {}
    for _ in range(TRIES if quiet < CPUS else 1):
        for _ in range(TRIES):
            begin, busy = time.monotonic(), machine_cpu()
            time.sleep(0.3)
            if machine_cpu() - busy <= quiet * (time.monotonic() - begin):
                break
        found = measure_once()
        if not best or found["others"] < best["others"]:
            best = found
        if best["others"] <= quiet:
            break
    return best


def machine_cpu() -> float:
    """CPU seconds that all processors have spent on anything."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = map(int, words[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def rsa_rate(seconds: float = 1.0) -> float:
    """Private RSA-2048 operations a second in one thread of this process."""
    key = rsa_oaep.generate()
    block = rsa_oaep.encrypt(key.public_key(), bytes(214))
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        rsa_oaep.decrypt(key, block)
        count += 1
    return count / (time.perf_counter() - begin)


def storm(megaki: Megaki, seconds: float) -> Rates:
    """A session's messages while another process shakes hands eight at a time."""
    fork = multiprocessing.get_context("fork")
    other = fork.Process(target=drive, args=(megaki.handshakes, 8, seconds + 1))
    other.start()
    time.sleep(0.4)
    try:
        return measure(megaki, lambda done: megaki.messages(64, done), 1, seconds)
    finally:
        other.terminate()
        other.join()


@contextmanager
def backends(worker: str) -> Iterator[tuple[Megaki, Nginx | None]]:
    """Both, started afresh."""
    folder = Path(tempfile.mkdtemp(prefix="mikanet-bench-"))
    folder.chmod(0o755)
    (folder / "worker.php").write_text(SCRIPT)
    (folder / "worker.py").write_text("def on_handle(request): return request\n")
    megaki = Megaki(folder, f"{worker}:{folder / 'worker'}.{'py' if worker == 'python' else 'php'}")
    nginx = None
    try:
        nginx = Nginx(folder) if shutil.which("nginx") else None
        yield megaki, nginx
    finally:
        megaki.stop()
        if nginx is not None:
            nginx.stop()
        shutil.rmtree(folder)


def one_round(worker: str, seconds: float, quiet: float) -> dict[str, Rates]:
    """Everything once."""
    figures: dict[str, Rates] = {"RSA-2048 private, one core": {"rate": rsa_rate()}}

    def take(name: str, backend: Any, lane: Callable[[Done], Lane], concurrency: int) -> None:
        figures[name] = quietly(quiet, lambda: measure(backend, lane, concurrency, seconds))

    with backends(worker) as (megaki, nginx):
        for concurrency in CONCURRENCY:
            for what, lane in (("handshakes", megaki.handshakes), ("resumes", megaki.resumes)):
                take(f"{what} at {concurrency}", megaki, lane, concurrency)
            for size in SIZES:
                for backend in (megaki, nginx) if nginx is not None else (megaki,):
                    label = "messages" if backend is megaki else backend.name
                    lane = partial(backend.messages, size)
                    take(f"{label} of {size} bytes at {concurrency}", backend, lane, concurrency)
        figures["messages of 64 bytes in a storm of handshakes"] = storm(megaki, seconds)
    return figures


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.megaki", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure of a round")
    parser.add_argument("--quiet", type=float, default=CPUS, help="what others may use of a processor meanwhile")
    parser.add_argument("--worker", choices=("php", "python"), default="php")
    parser.add_argument("--json", type=Path, help="write every figure there")
    options = parser.parse_args()
    rounds = []
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        rounds.append(one_round(options.worker, options.seconds, options.quiet))
    print(
        f"{'':52} {'1/s':>8} {'least':>8} {'most':>8} {'p50 ms':>8} {'p99 ms':>8} {'server us':>9} {'all us':>8} {'others':>8}"
    )
    for name, first in rounds[0].items():
        each = [one[name] for one in rounds]
        rates = [one["rate"] for one in each]
        line = f"{name:52} {statistics.median(rates):8.0f} {min(rates):8.0f} {max(rates):8.0f}"
        for figure, width, digits in _COLUMNS:
            if figure in first:
                line += f" {statistics.median(one[figure] for one in each):{width}.{digits}f}"
        print(line)
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=1))


if __name__ == "__main__":
    main()
