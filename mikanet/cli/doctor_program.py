"""``mikanet doctor PROGRAM ...``: the same command line as the program's, looked at instead of run.

A client is started beside the one that may be running already, with one door of its own, and asked for a target that every
server refuses: whatever the answer, it shows how far things work. A server is started too, if its port is free.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from cryptography import x509

from mikanet.carriers.urls import CarrierUrl
from mikanet.cli.doctor_clock import clock_findings
from mikanet.cli.doctor_findings import Finding, Status, note, ok, problem
from mikanet.cli.doctor_net import Place, certificate_findings, judge_certificate, place_findings, place_of
from mikanet.errors import ConfigError
from mikanet.service.options import Options

#: The option of each program by which applications, or requests, come in: the doctor gives it one of its own.
_DOORS = frozenset({"socks", "http", "forward", "forward-udp", "remote-forward", "listen-http"})

#: Ports of carriers whose URL names none.
_PORTS = {"http": 80, "ws": 80, "bosh": 80, "https": 443, "wss": 443, "boshs": 443, "tcp": 8865}
_SECURE = frozenset({"https", "wss", "boshs"})

#: A target that no server opens.
_UNREACHABLE = "[::1]:1"

#: How long a program may take to be there, in seconds.
_START_TIME = 8.0

#: A reset that comes so soon is the server's answer, in seconds; later it may be our own client that gives up.
_SOON = 4.0

_SERVER_SAYS = "the tunnel's server "
_STAMP = re.compile(r"^\S+ (?:info|warning|error|critical) ")


def program_findings(program: str, words: Sequence[str], seconds: float) -> Iterator[Finding]:
    """All about one command line."""
    client = program.endswith("-client")
    with tempfile.TemporaryDirectory(prefix="mikanet-doctor-") as folder:
        own = [*_without(words, _DOORS if client else frozenset()), f"--state-dir={folder}"]
        door = f"unix:{folder}/door"
        if client:
            own.append(f"--{'listen-http' if program == 'megaki-client' else 'http'}={door}")
        try:
            options = parse(program, own)
        except SystemExit as stop:
            yield problem("options", str(stop).removeprefix(f"{program}: "), f"mikanet {program} --help")
            return
        yield ok("options", "complete, and the files they name can be used")
        if client:
            yield from _client(program, options, own, Path(folder, "door"), seconds)
        else:
            # Another state folder: the options have the lock of the first one.
            yield from _server(
                program, options, [*_without(own, frozenset()), f"--state-dir={folder}/started"], seconds
            )


def parse(program: str, words: Sequence[str]) -> Options:
    """The program's options.

    :raises SystemExit: with one line, if they are wrong.
    """
    system, _, end = program.partition("-")
    options: Options = import_module(f"mikanet.{system}.tap_{end}").Options()
    options.parseOptions(list(words))
    return options


def _without(words: Sequence[str], names: frozenset[str]) -> list[str]:
    """The words without some options and their values."""
    kept: list[str] = []
    skip = False
    for word in words:
        name, equals, _ = word.removeprefix("--").partition("=")
        if skip:
            skip = False
        elif word.startswith("--") and (name in names or name == "state-dir"):
            skip = not equals
        else:
            kept.append(word)
    return kept


# -- clients


def _client(program: str, options: Any, words: list[str], door: Path, seconds: float) -> Iterator[Finding]:
    server = program.replace("client", "server")
    unreachable = 0
    places = client_places(program, options)
    for place, name in places:
        last: Finding | None = None
        for last in place_findings(place, server):
            yield last
        if last is not None and last.status is Status.PROBLEM:
            unreachable += 1
        elif place.tls:
            yield from certificate_findings(place, name)
    if places and unreachable == len(places):
        return
    command = [sys.executable, "-m", "mikanet", program, *words]
    with _started(command) as child:
        if not _wait_for(door, child):
            yield problem("start", f"the client does not start: {_last_line(child)}", f"mikanet {program} ...")
            return
        ask = _ask_gateway if program == "megaki-client" else _ask_door
        yield from ask(door, program, options, seconds)


def client_places(program: str, options: Any) -> list[tuple[Place, str]]:
    """Where a client's servers are, each with the name that its certificate is to be for."""
    if program == "nitrosocks-client":
        found = [place_of(text) for text in options.server_texts]
        name = str(options["server-name"])
        return [(Place(each.host, each.port, tls=True), name) for each in found if each is not None]
    if program == "pickaxe-client":
        return [carrier for text in options.carrier_urls if (carrier := _carrier_place(text)) is not None]
    if program == "paqet-client":
        config = options.setup.config
        return [(Place(config.server.host, config.server.port, udp=True), "")]
    place = place_of(str(options["server"]))
    return [] if place is None else [(place, place.host)]


def _carrier_place(text: str) -> tuple[Place, str] | None:
    try:
        url = CarrierUrl.parse(text)
    except (ConfigError, AttributeError):
        return None
    if url.scheme in ("dns", "icmp"):
        return Place(url.host, url.port or 53, udp=True), url.host
    port = url.port or _PORTS.get(url.scheme)
    if not url.host or port is None:
        return None
    return Place(url.host, port, tls=url.scheme in _SECURE), url.host


def _ask_door(door: Path, program: str, options: Any, seconds: float) -> Iterator[Finding]:
    """Ask the server for its own loopback through the client's HTTP door."""
    began = time.monotonic()
    answer, was_reset = _connect(door, seconds)
    took = time.monotonic() - began
    # Mika has no answers but resets; whatever else it was, the client knows more by now.
    if program == "mika-client" and answer.startswith("HTTP/1.1 200") and (took > _SOON or not was_reset):
        answer, _ = _connect(door, seconds)
    if _SERVER_SAYS in answer:
        why = answer.partition(_SERVER_SAYS)[2].strip()
        yield problem("server", f"it {why}", _mend_server(program, why))
        if program == "mika-client" and "answers nothing" in why:
            yield from clock_findings(options)
        return
    if not answer:
        yield problem("server", f"no answer within {seconds:g} s", f"mikanet {program} ... --verbose   (and its log)")
        return
    yield ok("server", f"it lets us in and answers, {took * 1000:.0f} ms")


def _mend_server(program: str, why: str) -> str:
    if "answers nothing" in why or "password" in why:
        return "the same --password-file at both ends; timedatectl   (whether a clock is set by the network)"
    return f"on the server: mikanet doctor {program.replace('client', 'server')} ...   (with its own options)"


def _connect(door: Path, seconds: float) -> tuple[str, bool]:
    """What a CONNECT brings until its connection ends or the time is over, and whether it ended in a reset."""
    request = f"CONNECT {_UNREACHABLE} HTTP/1.1\r\nHost: {_UNREACHABLE}\r\n\r\n".encode()
    return _exchange(door, request, seconds)


def _exchange(door: Path, request: bytes, seconds: float) -> tuple[str, bool]:
    answer, was_reset = b"", False
    until = time.monotonic() + seconds
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(seconds)
        try:
            connection.connect(str(door))
            connection.sendall(request)
            while (left := until - time.monotonic()) > 0:
                connection.settimeout(left)
                data = connection.recv(65536)
                if not data:
                    break
                answer += data
                if answer.startswith(b"HTTP/1.1 ") and not answer.startswith(b"HTTP/1.1 200") and b"\n" in answer[-2:]:
                    break
        except ConnectionResetError:
            was_reset = True
        except OSError:
            pass  # out of time
    return answer.decode("utf-8", "replace"), was_reset


def _ask_gateway(door: Path, program: str, options: Any, seconds: float) -> Iterator[Finding]:
    """Ask the worker of a Megaki server something that it may well not understand: any answer is one."""
    began = time.monotonic()
    request = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\nConnection: close\r\n\r\ndoctor"
    answer, _ = _exchange(door, request, seconds)
    took = (time.monotonic() - began) * 1000
    status = answer[9:12]
    if status == "200":
        yield ok("server", f"it knows our key for its own, and a worker answers, {took:.0f} ms")
    elif status:
        body = answer.partition("\r\n\r\n")[2].strip() or answer.partition("\r\n")[0]
        yield problem(
            "server", body, "the server.cert that mikanet keygen megaki made for this server; its log says more"
        )
    else:
        yield problem("server", f"no answer within {seconds:g} s", "look at the server's log")


# -- servers


def _server(program: str, options: Any, words: list[str], seconds: float) -> Iterator[Finding]:
    taken = False
    for port, kind in server_ports(program, options):
        finding = port_finding(port, kind)
        taken = taken or finding.status is not Status.OK
        yield finding
    for path in _certificates(program, options):
        yield from _certificate_file(path)
    yield from _machine()
    if taken:
        return
    with _started([sys.executable, "-m", "mikanet", program, *words]) as child:
        until = time.monotonic() + min(seconds, _START_TIME)
        while time.monotonic() < until and child.poll() is None:
            time.sleep(0.1)
            if time.monotonic() > until - min(seconds, _START_TIME) / 2 and " on " in _said(child):
                break
        if child.poll() is not None:
            yield problem("start", f"the server does not start: {_last_line(child)}", f"mikanet {program} ...")
        else:
            for line in _said(child).splitlines()[1:]:
                yield (note if " warning " in line[:60] else ok)("start", _STAMP.sub("", line))


def server_ports(program: str, options: Any) -> list[tuple[int, int]]:
    """The ports that a server opens, each with its kind of socket."""
    if program == "pickaxe-server":
        found = [_carrier_place(text) for text in options.carrier_urls]
        return [
            (each[0].port, socket.SOCK_DGRAM if each[0].udp else socket.SOCK_STREAM)
            for each in found
            if each is not None
        ]
    if program == "paqet-server":
        config = options.settings.setup.config
        return [(config.port, socket.SOCK_DGRAM)] if config.carrier == "udp" else []
    text = re.sub(r"\\+", "", str(options["listen"]))
    found_port = re.search(r"(tcp6?|kcp|ssl):(\d{1,5})\b", text)
    if found_port is None:
        return []
    return [(int(found_port[2]), socket.SOCK_DGRAM if found_port[1] == "kcp" else socket.SOCK_STREAM)]


def port_finding(port: int, kind: int) -> Finding:
    """Whether a port can be opened, and who has it if not."""
    word = "UDP" if kind == socket.SOCK_DGRAM else "TCP"
    try:
        with socket.socket(socket.AF_INET, kind) as probe:
            if kind == socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
            if kind == socket.SOCK_STREAM:
                probe.listen(1)
    except PermissionError:
        text = f"{word} port {port} needs root, or the capability CAP_NET_BIND_SERVICE"
        return problem("port", text, f"sudo mikanet ... , or choose a port above {1023}")
    except OSError:
        holder = _holder(port, word.lower())
        text = f"{word} port {port} is taken{f' by {holder}' if holder else ''}: this server may be running already"
        return note("port", text, f"ss -l{word[0].lower()}np 'sport = :{port}'")
    return ok("port", f"{word} port {port} is free")


def _holder(port: int, table: str) -> str:
    """The process that has a port, as far as we may see it."""
    inodes = set()
    for name in (table, f"{table}6"):
        try:
            lines = Path(f"/proc/net/{name}").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(each) in inodes for each in (process / "fd").iterdir()):
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
                return f"process {process.name} ({words[:60]})"
        except OSError:
            continue
    return ""


def _certificates(program: str, options: Any) -> list[str]:
    if program == "nitrosocks-server":
        return [str(options["certificate"])]
    if program == "pickaxe-server":
        found = []
        for text in options.carrier_urls:
            match = re.search(r"[?&]certificate=([^&]+)", text)
            if match is not None:
                found.append(match[1])
        return found
    return []


def _certificate_file(path: str) -> Iterator[Finding]:
    try:
        certificate = x509.load_pem_x509_certificate(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        yield problem("certificate", f"{path}: {error}", f"openssl x509 -in {path} -noout -text")
        return
    yield from judge_certificate(certificate)


def _machine() -> Iterator[Finding]:
    """What servers need of their machine."""
    if shutil.which("timedatectl"):
        done = subprocess.run(
            ["timedatectl", "show", "--property=NTPSynchronized", "--value"],
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout.strip()
        if said == "yes":
            yield ok("clock", "is set by the network")
        elif said == "no":
            yield note(
                "clock", "is not set by the network; clients' clocks must agree with it", "timedatectl set-ntp true"
            )


# -- children


def _started(command: Sequence[str]) -> _Child:
    return _Child(command)


class _Child:
    """A program under the doctor's eyes, as a context manager: it ends with it."""

    def __init__(self, command: Sequence[str]) -> None:
        self.log = tempfile.NamedTemporaryFile(prefix="mikanet-doctor-", suffix=".log")  # noqa: SIM115  # closed below
        self._child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True
        )
        self.poll = self._child.poll

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.terminate()
        try:
            self._child.wait(3)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self.log.close()


def _wait_for(path: Path, child: _Child) -> bool:
    until = time.monotonic() + _START_TIME
    while not path.exists():
        if child.poll() is not None or time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _said(child: _Child) -> str:
    return Path(child.log.name).read_text(encoding="utf-8", errors="replace")


def _last_line(child: _Child) -> str:
    lines = [line for line in _said(child).splitlines() if line.strip()]
    return _STAMP.sub("", lines[-1]) if lines else "it says nothing"
