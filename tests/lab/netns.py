"""The wire between two network namespaces: real IP traffic, two machines in one, removed when done. Needs root.

::

    with Namespaces("delay=15ms loss=10%", seed=1) as pair:
        server = pair.second.start([sys.executable, "-m", "http.server"], ports=[8000])
        pair.first.run(["curl", f"http://{pair.second.address}:8000/"])

Each namespace has loopback and one TAP device; the frames of both go through a process with the seeded wire.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.lab.scenario import Carrier, Direction, Scenario
from tests.support.peers import missing, require_program, require_root
from tests.support.processes import Process

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_PREFIX = "mikalab"
_numbers = itertools.count()


class Namespace:
    """One of the two machines.

    :ivar name: of the namespace; ``interface`` of its TAP device; ``address`` and ``address6`` of that device; ``mac``.
    """

    def __init__(self, name: str, interface: str, host: int, network: int) -> None:
        self.name = name
        self.interface = interface
        self.address = f"10.77.{network}.{host}"
        self.address6 = f"fd77:{network:x}::{host:x}"
        self.mac = f"02:77:00:00:{network:02x}:{host:02x}"

    def command(self, args: Sequence[str]) -> list[str]:
        """The command line that runs ``args`` inside."""
        return ["ip", "netns", "exec", self.name, *args]

    def run(self, args: Sequence[str], timeout: float = 60.0, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program inside to its end, with its output.

        :raises subprocess.CalledProcessError: if it fails and ``check`` is true.
        """
        return subprocess.run(
            self.command(args), timeout=timeout, check=check, text=True, errors="replace", capture_output=True
        )

    def start(
        self,
        args: Sequence[str],
        *,
        ports: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout: float = 20.0,
    ) -> Process:
        """Start a program inside; stop it before the pair is closed."""
        return Process(self.command(args), ports=ports, env=env, cwd=cwd, timeout=timeout)


class Namespaces:
    """Two namespaces with a wire between them, as a context manager.

    :param log: a file for the wire's decisions; a temporary one that is thrown away if not given.
    :param mtu: of both devices.
    :raises SkipTest: without root, ``ip`` or a TUN device (AssertionError when peers are required).
    """

    def __init__(self, scenario: Scenario | str = "", seed: int | str = 1, *, log: str = "", mtu: int = 1500) -> None:
        self.scenario = Scenario.parse(scenario) if isinstance(scenario, str) else scenario
        self.scenario.require(Carrier.PACKETS)
        self.seed = seed
        self.log = log
        self._mtu = mtu
        number = next(_numbers)
        # A network of our own per process and pair, so that two runs never meet.
        self._network = (os.getpid() * 7 + number) % 256
        base = f"{_PREFIX}-{os.getpid()}-{number}"
        self.first = Namespace(f"{base}-a", f"lab{os.getpid() % 100000}x{number}a", 1, self._network)
        self.second = Namespace(f"{base}-b", f"lab{os.getpid() % 100000}x{number}b", 2, self._network)
        self._stack = contextlib.ExitStack()
        self._orders: socket.socket | None = None
        self._answers: Any = None

    def __enter__(self) -> Self:
        require_root()
        require_program("ip")
        if not os.path.exists("/dev/net/tun"):
            raise missing("/dev/net/tun")
        remove_left_over()
        try:
            self._make()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the wire and every process that still runs inside, and remove both namespaces."""
        self._stack.close()

    # -- while it runs

    def counts(self) -> dict[str, int]:
        """How often the wire took each action, by ``"up loss"`` and the like."""
        return self._order(["counts"])

    def block(self, direction: Direction, blocked: bool = True) -> None:
        """Let nothing pass in a direction from now on, or end that."""
        self._order(["block", direction.value, blocked])

    def rebind(self) -> None:
        """Give the client a new port or address now."""
        self._order(["rebind"])

    def _order(self, order: list[Any]) -> dict[str, int]:
        assert self._orders is not None
        self._orders.sendall(json.dumps(order).encode() + b"\n")
        answer: dict[str, int] = json.loads(self._answers.readline())
        return answer

    # -- making it

    def _make(self) -> None:
        devices = []
        for space, other in ((self.first, self.second), (self.second, self.first)):
            _ip("netns", "add", space.name)
            self._stack.callback(_remove, space.name)
            device = _tap(space.interface)
            self._stack.callback(os.close, device)
            devices.append(device)
            _ip("link", "set", space.interface, "netns", space.name)
            self._configure(space, other)
        self._start_wire(devices)

    def _configure(self, space: Namespace, other: Namespace) -> None:
        """Addresses and neighbours by hand, so that the only traffic on the wire is the test's own."""
        for key in ("accept_ra", "accept_dad", "router_solicitations"):
            _ip("netns", "exec", space.name, "sysctl", "-q", "-w", f"net.ipv6.conf.{space.interface}.{key}=0")
        inside = ("-n", space.name)
        _ip(*inside, "link", "set", "lo", "up")
        _ip(*inside, "link", "set", space.interface, "address", space.mac, "mtu", str(self._mtu), "txqueuelen", "10000")
        _ip(*inside, "link", "set", space.interface, "up")
        _ip(*inside, "addr", "add", f"{space.address}/24", "dev", space.interface)
        _ip(*inside, "addr", "add", f"{space.address6}/64", "dev", space.interface, "nodad")
        neighbours = [other.address, other.address6]
        if other is self.first:
            # The addresses that rebind=address gives to the client.
            neighbours += [f"10.77.{self._network}.{100 + n}" for n in range(100)]
        batch = "".join(
            f"neigh replace {address} lladdr {other.mac} dev {space.interface} nud permanent\n"
            for address in neighbours
        )
        subprocess.run(["ip", *inside, "-batch", "-"], input=batch, text=True, check=True, capture_output=True)

    def _start_wire(self, devices: list[int]) -> None:
        ours, theirs = socket.socketpair()
        log = self.log
        if not log:
            log = str(Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="mikanet-wire-"))) / "log")
        command = [sys.executable, "-m", "tests.lab.tapwire", *map(str, devices), str(theirs.fileno())]
        command += [str(self.scenario), str(self.seed), log]
        wire = Process(command, pass_fds=[*devices, theirs.fileno()])
        self._stack.callback(self._end_wire, wire, ours)
        theirs.close()
        self._orders = ours
        self._answers = ours.makefile("r")
        ours.settimeout(20)
        if self._answers.readline() != "ready\n":
            raise RuntimeError(f"the wire did not start\n{wire.output}")

    def _end_wire(self, wire: Process, ours: socket.socket) -> None:
        self._answers.close()
        ours.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            wire.wait(3)
        wire.kill()


def _tap(name: str) -> int:
    """A new TAP device, which lives as long as the file descriptor is open."""
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return device


def _ip(*args: str) -> None:
    result = subprocess.run(["ip", *args], text=True, capture_output=True)
    if result.returncode:
        raise RuntimeError(f"ip {' '.join(args)}: {result.stderr.strip()}")


def _remove(name: str) -> None:
    """Remove a namespace and, by their ids, the processes that still run in it."""
    found = subprocess.run(["ip", "netns", "pids", name], text=True, capture_output=True)
    for pid in found.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), 9)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)


def remove_left_over() -> list[str]:
    """Remove namespaces of test programs that were killed before they could; their names."""
    listed = subprocess.run(["ip", "netns", "list"], text=True, capture_output=True).stdout
    removed = []
    for name in re.findall(rf"^({_PREFIX}-(?:\d+)-\d+-[ab])\b", listed, re.MULTILINE):
        if not os.path.exists(f"/proc/{name.split('-')[1]}"):
            _remove(name)
            removed.append(name)
    return removed
