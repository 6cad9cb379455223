"""Firewall rules that keep the kernel out of a raw port: no connection tracking for it, and no RST from it.

Each port has a table of its own (nft), or rules with a comment of its own (iptables), so that what is removed is exactly
what was added. A small keeper process, started while we may, waits until our end of a pipe closes: at an orderly end, after
privileges were dropped, and after ``kill -9`` too. It leaves the rules for a while, since the peer knows of no end and
sends on, and removes them then, or as soon as a new start asks for that. Should it be killed as well, the next start
finds the rules by their name and clears them; a socket in the network namespace's own name space tells live ones from
stale, and carries the word of the new start.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import Protocol

from twisted.logger import Logger

from mikanet.errors import ConfigError

_log = Logger()
#: How tables, and comments of rules, begin; the port follows.
NAME = "mikanet_paqet_"
_NAMES = re.compile(rf"\b{NAME}(\d+)\b")
#: Seconds: for one command, and for the keeper of a process that has just died.
_COMMAND_TIME = 10.0
_CLAIM_TIME = 3.0
#: Seconds for which rules outlive their process: as long as a peer repeats what nobody acknowledges (smux gives up then).
LINGER = 30
#: Keepers that are about to end, for the kernel to be told that we know.
_ending: list[subprocess.Popen[bytes]] = []


class Rules(Protocol):
    """One way of setting rules."""

    def add(self, port: int) -> None:
        """Add the rules of a port.

        :raises FirewallError: with what the program said.
        """

    def removal(self, port: int) -> str:
        """A shell command that removes the rules of a port, and fails or not when there are none."""

    def ports(self) -> set[int]:
        """The ports that have rules of ours now, whoever added them."""


class FirewallError(ConfigError):
    """A rule cannot be set."""


class NftRules:
    """Rules as a table of nftables, which serves IPv4 and IPv6."""

    def __init__(self, program: str) -> None:
        self._program = program

    def add(self, port: int) -> None:
        """As :class:`Rules`: in one transaction."""
        _run([self._program, "-f", "-"], self.script(port))

    @staticmethod
    def script(port: int) -> str:
        """What ``nft -f`` reads; a table of the same name is replaced."""
        table = f"table inet {NAME}{port}"
        return f"""add {table}
delete {table}
{table} {{
  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
    tcp dport {port} notrack
  }}
  chain output {{
    type filter hook output priority raw; policy accept;
    tcp sport {port} notrack
  }}
  chain resets {{
    type filter hook output priority mangle; policy accept;
    tcp sport {port} tcp flags & rst == rst drop
  }}
}}
"""

    def removal(self, port: int) -> str:
        """As :class:`Rules`."""
        return shlex.join([self._program, "delete", "table", "inet", f"{NAME}{port}"])

    def ports(self) -> set[int]:
        """As :class:`Rules`."""
        listed = json.loads(_run([self._program, "-j", "list", "tables"]))
        tables = [entry.get("table", {}).get("name", "") for entry in listed.get("nftables", [])]
        return {int(match[1]) for name in tables if (match := _NAMES.fullmatch(name))}


class IptablesRules:
    """Rules of iptables and ip6tables, those of them that are there."""

    def __init__(self, programs: Sequence[str]) -> None:
        self._programs = programs

    @staticmethod
    def rules(port: int) -> list[list[str]]:
        """Table, chain, and the rest of each rule."""
        comment = ["-m", "comment", "--comment", f"{NAME}{port}"]
        matches = ["-p", "tcp"]
        return [
            ["raw", "PREROUTING", *matches, "--dport", str(port), *comment, "-j", "CT", "--notrack"],
            ["raw", "OUTPUT", *matches, "--sport", str(port), *comment, "-j", "CT", "--notrack"],
            ["mangle", "OUTPUT", *matches, "--sport", str(port), "--tcp-flags", "RST", "RST", *comment, "-j", "DROP"],
        ]

    def _commands(self, action: str, port: int) -> list[list[str]]:
        return [
            [program, "-w", "5", "-t", table, action, *rest]
            for program in self._programs
            for table, *rest in self.rules(port)
        ]

    def add(self, port: int) -> None:
        """As :class:`Rules`."""
        for command in self._commands("-I", port):
            _run(command)

    def removal(self, port: int) -> str:
        """As :class:`Rules`."""
        return "; ".join(shlex.join(command) for command in self._commands("-D", port))

    def ports(self) -> set[int]:
        """As :class:`Rules`."""
        listed = "".join(
            _run([program, "-w", "5", "-t", table, "-S"]) for program in self._programs for table in ("raw", "mangle")
        )
        return {int(port) for port in _NAMES.findall(listed)}


def find_rules() -> Rules:
    """The way of setting rules that this machine has: nft, else iptables.

    :raises FirewallError: if it has neither.
    """
    return all_rules()[0]


def all_rules() -> list[Rules]:
    """Every way of setting rules that this machine has, the better one first.

    :raises FirewallError: if there is none.
    """
    found: list[Rules] = []
    nft = _program("nft")
    if nft:
        found.append(NftRules(nft))
    programs = [path for path in map(_program, ("iptables", "ip6tables")) if path]
    if programs:
        found.append(IptablesRules(programs))
    if not found:
        raise FirewallError("neither nft nor iptables is here: install nftables")
    return found


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def _run(command: Sequence[str], text: str = "") -> str:
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_COMMAND_TIME, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise FirewallError(f"{command[0]}: {problem}") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise FirewallError(f"{command[0]} says: {said[:200]}")
    return done.stdout


def _claim(port: int) -> socket.socket | None:
    """The mark of whoever keeps a port's rules, or None if somebody has it.

    An abstract socket's name is the network namespace's, as the rules are, and goes with the last process that has it.
    """
    mark = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        mark.bind(f"\0{NAME}{port}")
    except OSError:
        mark.close()
        return None
    return mark


def _ask_to_end(port: int) -> None:
    """Tell the keeper of a port whose process has ended, if there is one, to wait no longer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
        sender.sendto(b"\n", socket.MSG_DONTWAIT, f"\0{NAME}{port}")


def stale_ports(rules: Rules) -> set[int]:
    """Ports with rules that nobody keeps: those of processes that were killed together with their keepers."""
    stale = set()
    for port in rules.ports():
        mark = _claim(port)
        if mark is not None:
            mark.close()
            stale.add(port)
    return stale


def clear_stale(rules: Rules) -> set[int]:
    """Remove what killed processes left behind; the ports."""
    cleared = set()
    for port in stale_ports(rules):
        mark = _claim(port)
        if mark is not None:
            with mark:
                _remove(rules, port)
                cleared.add(port)
    return cleared


def _remove(rules: Rules, port: int) -> None:
    command = ["sh", "-c", rules.removal(port)]
    try:
        subprocess.run(command, capture_output=True, timeout=_COMMAND_TIME, check=False)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise FirewallError(f"cannot remove the rules of port {port}: {problem}") from None


class Firewall:
    """The rules of one port, from :meth:`install` to :meth:`remove`."""

    def __init__(self, port: int, rules: Rules) -> None:
        self._port = port
        self._rules = rules
        self._keeper: subprocess.Popen[bytes] | None = None

    def install(self) -> None:
        """Clear what killed processes left, then add the rules.

        :raises FirewallError: if a rule cannot be set; none is left behind then.
        """
        for port in sorted(clear_stale(self._rules)):
            _log.info("removed the firewall rules that a killed process left for port {port}", port=port)
        mark = self._wait_for_mark()
        try:
            _remove(self._rules, self._port)
            # Ignores what ends us; read returns when our end of the pipe is closed, by us or by the kernel. Then it waits
            # for a datagram of a new start's, not for ever. The mark is its standard output, as dash knows no more
            # than ten descriptors.
            word = f"timeout -s KILL {LINGER} head -c 1 <&3 >/dev/null; " if LINGER else ""
            script = f"trap '' INT TERM HUP; exec 3<&1 >/dev/null; read -r _; {word}{self._rules.removal(self._port)}"
            self._keeper = subprocess.Popen(
                ["sh", "-c", script],
                stdin=subprocess.PIPE,
                stdout=mark.fileno(),
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        finally:
            mark.close()
        try:
            self._rules.add(self._port)
        except FirewallError:
            self.remove()
            _ask_to_end(self._port)
            raise

    def _wait_for_mark(self) -> socket.socket:
        until = time.monotonic() + _CLAIM_TIME
        _ask_to_end(self._port)
        while (mark := _claim(self._port)) is None:
            if time.monotonic() > until:
                raise FirewallError(f"another process keeps the firewall rules of port {self._port}")
            time.sleep(0.02)
        return mark

    def remove(self) -> None:
        """Leave the rules to their keeper, which removes them within :data:`LINGER` seconds; without that, at once."""
        keeper, self._keeper = self._keeper, None
        _ending[:] = [each for each in _ending if each.poll() is None]
        if keeper is None:
            return
        if LINGER:
            assert keeper.stdin is not None
            keeper.stdin.close()
            _ending.append(keeper)
            return
        try:
            keeper.communicate(timeout=_COMMAND_TIME)
        except subprocess.TimeoutExpired:
            keeper.kill()
            keeper.wait()
