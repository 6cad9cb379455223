"""Options that every server and client shares, read once and turned into values with one-line errors.

The command lines are a contract: names and forms are those of ``docs/reference/options.rst``.
"""

from __future__ import annotations

import getopt
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint
from twisted.python import usage

from mikanet.address import Address, parse_address, parse_port
from mikanet.egress import EgressPolicy, OpenPorts, Rule, is_own_address, parse_rule
from mikanet.endpoint_strings import client_from_string, server_from_string
from mikanet.errors import ConfigError
from mikanet.guard.admission import AdmissionLimits
from mikanet.half_closed import HalfClosed
from mikanet.net.endpoint import TcpEndpoint
from mikanet.relay import MemoryBudget
from mikanet.service.console import use_console
from mikanet.service.help import format_help
from mikanet.service.secret_files import read_credentials
from mikanet.service.state import StateFolder, default_state_dir

T = TypeVar("T")
_ServerParser = Callable[[Any, str], IStreamServerEndpoint]
_ClientParser = Callable[[Any, str], IStreamClientEndpoint]


#: Options that name where to go or to listen.
_PLACES = frozenset(("listen", "listen-http", "server", "target", "config"))


class Options(usage.Options):
    """Base of all command lines: every mistake is one line on stderr and a non-zero exit status.

    Subclasses name their plugin in ``command``, show a command line that works in ``example``, and check their values in :meth:`check`, which may raise
    :class:`ConfigError`.
    """

    command: ClassVar[str] = ""
    synopsis: ClassVar[str] = ""
    longdesc: ClassVar[str] = ""
    example: ClassVar[str] = ""

    optFlags: ClassVar[Sequence[Sequence[object]]] = [
        ["insecure-ok", None, "accept weak secrets and ciphers that cannot protect"],
        ["verbose", None, "log each connection with its destination"],
    ]

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse, then check.

        :raises SystemExit: with one line, for any mistake of the user.
        """
        try:
            self._refuse_repetition(options)
            super().parseOptions(options)  # type: ignore[no-untyped-call]  # untyped in Twisted
        except (usage.UsageError, ConfigError) as error:
            text = " ".join(str(error).split())
            raise SystemExit(f"{self.command}: {text}{self._hint(text)}") from None

    def _hint(self, text: str) -> str:
        """What may have been meant by an option that is none."""
        found = re.fullmatch(r"option --(\S+) not (?:recognized|a unique prefix)", text)
        if found is None:
            return ""
        near = get_close_matches(found[1], [name.removesuffix("=") for name in self.longOpt], 1)
        return f"{f': did you mean --{near[0]}?' if near else ';'} --help lists the options"

    def _refuse_repetition(self, words: Sequence[str] | None) -> None:
        """Refuse a place that is given twice and counts once: who writes two wants both.

        Of other options the last one counts, as scripts expect that append to a command line.

        :raises ConfigError: if there is one.
        """
        try:
            given, _ = getopt.getopt(list(sys.argv[1:] if words is None else words), self.shortOpt, self.longOpt)
        except getopt.GetoptError:
            return  # the parser says what is wrong
        counted = Counter(name for name, value in given if value)
        for name, count in counted.items():
            if count > 1 and name.removeprefix("--") in _PLACES and name.removeprefix("--") in self.defaults:
                raise ConfigError(f"{name} is given {count} times and takes one value: leave out the others")

    def parseArgs(self, *stray: str) -> None:
        """No command takes arguments that are no options.

        :raises UsageError: if there are any.
        """
        if stray:
            raise usage.UsageError(f"unexpected argument {stray[0]!r}; --help lists the options")

    def postOptions(self) -> None:
        """Called by the parser when all options are there."""
        self.check()
        use_console(getattr(self, "parent", None))

    def check(self) -> None:
        """Turn options into values.

        :raises ConfigError: in the user's words.
        """

    def __str__(self) -> str:
        return self.getUsage()

    def getUsage(self, width: int | None = None) -> str:
        """The help."""
        command = self.command if self.command.startswith("mikanet ") else f"mikanet {self.command}"
        synopsis = self.synopsis.removeprefix("[options] ") if self.synopsis else "[options]"
        about = " ".join(str(self.longdesc or "").split())
        documented = self._documented()
        return format_help(f"{command} {synopsis}", about, self.example, documented, self.defaults) + "\n"

    def _documented(self) -> list[tuple[str, bool, str]]:
        """Every option: its name, whether it takes a value, and what it means."""
        found = {}
        for entry in self.longOpt:
            name = entry.removesuffix("=")
            if name == self.synonyms.get(name, name):
                text = self.docs.get(name) or getattr(self._dispatch.get(name), "__doc__", None) or ""
                words = " ".join(str(text).split()).removesuffix(".")
                found[name] = (
                    name,
                    entry.endswith("="),
                    words[:1].lower() + words[1:] if words[1:2].islower() else words,
                )
        return [found[name] for name in sorted(found)]

    def opt_version(self) -> None:
        """Show the version and exit."""
        from mikanet import __version__

        sys.stdout.write(f"mikanet {__version__}\n")
        raise SystemExit(0)

    def required(self, name: str) -> str:
        """The value of an option that must be given."""
        value = self[name]
        if not value:
            raise ConfigError(f"--{name} is missing")
        return str(value)

    def number(self, name: str, least: float, most: float, kind: Callable[[str], Any] = int) -> Any:
        """The value of a number option inside its bounds."""
        try:
            value = kind(self[name])
        except (TypeError, ValueError):
            raise ConfigError(f"--{name} takes a number, not {self[name]!r}") from None
        if not least <= value <= most:  # also refuses NaN
            raise ConfigError(f"--{name} must be between {least} and {most}")
        return value

    def budget(self, reactor: Any) -> MemoryBudget:
        """What the relays of this program share, by ``--memory`` and ``--half-closed-time``."""
        half_closed = HalfClosed(reactor, self.number("half-closed-time", 0, 1e7, float))
        return MemoryBudget(self.number("memory", 1, 1024 * 1024) * 1024 * 1024, half_closed)


def _named(option: str, parse: Callable[[str], T], text: str) -> T:
    """A parsed value; a mistake names its option."""
    try:
        return parse(text)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from None


def server_endpoint(reactor: Any, option: str, text: str) -> IStreamServerEndpoint:
    """A listening endpoint from its string.

    :raises ConfigError: if the string is not one.
    """
    return _endpoint(cast(_ServerParser, server_from_string), reactor, option, text, "tcp:8388")


def client_endpoint(reactor: Any, option: str, text: str) -> IStreamClientEndpoint:
    """A client endpoint from its string.

    A bare ``tcp:HOST:PORT`` gets what ``host:`` gives: all addresses of a name, IPv6 among them, by happy eyeballs.

    :raises ConfigError: if the string is not one.
    """
    bare = re.fullmatch(r"(?:tcp|host):(?:\[([0-9A-Fa-f:.]+)\]|([^:=\\\[\]]+)):(\d{1,5})", text)
    if bare is not None:
        return TcpEndpoint(reactor, Address(bare[1] or bare[2], parse_port(bare[3])))
    return _endpoint(cast(_ClientParser, client_from_string), reactor, option, text, "tcp:example.com:8388")


def _endpoint(parse: Callable[[Any, str], T], reactor: Any, option: str, text: str, example: str) -> T:
    try:
        return parse(reactor, text)
    except ConfigError as error:
        raise ConfigError(f"--{option} {text!r}: {error}") from None
    except Exception as error:  # noqa: BLE001 - a parser may raise anything: it calls what the string names
        raise ConfigError(f"--{option} {text!r} is not an endpoint like {example}: {_cause(error)}") from None


#: What the parsers of endpoint strings say of an argument too few, too many, or of a wrong kind, and what that means.
_CAUSES = (
    (r"missing \d+ required (?:positional|keyword-only) arguments?: '(\w+)'.*", r"\1 is missing"),
    (r"takes .* arguments? but \d+ (?:was|were) given", "there are too many parts between its colons"),
    (r"got an unexpected keyword argument '(.*)'", r"it takes no '\1='"),
    (r"got multiple values for argument '(.*)'", r"\1 is given twice"),
    (r"invalid literal for int\(\) with base 10: (.*)", r"\1 is no number"),
    (r"Unknown endpoint type: (.*)", r"there is no endpoint type \1"),
)


def _cause(error: Exception) -> str:
    """What is wrong with an endpoint string, without the signatures of the functions that it was given to."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = str(error)
    for pattern, meaning in _CAUSES:
        found = re.search(pattern, text, re.DOTALL)
        if found is not None:
            return found.expand(meaning)
    if isinstance(error, TypeError) or not text or "(" in text:
        return "it cannot be understood; docs/reference/endpoints.rst has the form of each"
    return text


class ServerOptions(Options):
    """What every server takes.

    :ivar allow: egress rules. :ivar deny: egress rules.
    :cvar has_users: whether the system tells its users apart.
    """

    has_users: ClassVar[bool] = True

    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["state-dir", None, None, "folder for what must survive a restart"],
        [
            "refusal-time",
            None,
            None,
            "seconds until a refused connection is closed (laboratories only; default 60 to 90)",
        ],
        ["drain-time", None, "30", "seconds that connections may go on after SIGTERM"],
        ["max-unverified", None, "1000", "connections of peers that have not authenticated yet"],
        [
            "max-unverified-per-address",
            None,
            "32",
            "connections of peers from one address that have not authenticated yet",
        ],
        ["max-connections", None, "10000", "connections of authenticated peers"],
        [
            "max-per-user",
            None,
            None,
            "connections of one authenticated user (default 1000; all of them where one secret serves everybody)",
        ],
        ["memory", None, "512", "MiB that relay buffers may use before new streams are refused"],
        ["half-closed-time", None, "900", "seconds after which a half-closed, silent connection is reset; 0 for never"],
    ]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in Twisted
        self.allow: list[Rule] = []
        self.deny: list[Rule] = []

    def opt_allow_egress(self, rule: str) -> None:
        """CIDR[:PORT[-PORT]] that clients may reach although it is not public; repeatable."""
        self.allow.append(_named("--allow-egress", parse_rule, rule))

    def opt_deny_egress(self, rule: str) -> None:
        """CIDR[:PORT[-PORT]] that clients may not reach; repeatable, goes before --allow-egress."""
        self.deny.append(_named("--deny-egress", parse_rule, rule))

    def egress_policy(self, reactor: Any, own_ports: frozenset[int] = frozenset()) -> EgressPolicy:
        """The policy of these options.

        :param own_ports: ports of ours that the reactor does not listen on itself.
        """
        return EgressPolicy(tuple(self.allow), tuple(self.deny), own_ports, is_own_address, OpenPorts(reactor))

    def limits(self) -> AdmissionLimits:
        """The caps of these options."""
        most = 10_000_000
        if self["max-per-user"] is None:
            self["max-per-user"] = 1000 if self.has_users else self["max-connections"]
        return AdmissionLimits(
            unverified=self.number("max-unverified", 1, most),
            unverified_per_address=self.number("max-unverified-per-address", 1, most),
            connections=self.number("max-connections", 1, most),
            per_user=self.number("max-per-user", 1, most),
        )

    def state_folder(self, listen: str) -> StateFolder:
        """The state of the server that listens there."""
        base = Path(self["state-dir"]) if self["state-dir"] else default_state_dir()
        state = StateFolder(base, f"{self.command} {listen}")
        state.lock()
        return state

    def refusal_time(self, state: StateFolder) -> float:
        """Seconds from accept to the end of a refused connection."""
        if self["refusal-time"] is None:
            return state.refusal_time(_random_uniform)
        return float(self.number("refusal-time", 0.1, 3600, float))


def _random_uniform() -> float:
    return int.from_bytes(os.urandom(7)) / 2**56


class ClientOptions(Options):
    """What every client takes: its front doors.

    :ivar doors: (kind, listening endpoint string) of ``socks`` and ``http``.
    :ivar forwards: (listening endpoint string, destination).
    :ivar udp_forwards: (listening address, destination).
    """

    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["proxy-auth", None, None, "file of user:password lines that the SOCKS and HTTP doors ask for"],
        ["state-dir", None, None, "folder for what must survive a restart (clients keep nothing yet)"],
        ["drain-time", None, "30", "seconds that connections may go on after SIGTERM"],
        ["max-connections", None, "10000", "connections at each front door"],
        ["memory", None, "512", "MiB that relay buffers may use before new streams are refused"],
        ["half-closed-time", None, "900", "seconds after which a half-closed, silent connection is reset; 0 for never"],
    ]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in Twisted
        self.doors: list[tuple[str, str]] = []
        self.forwards: list[tuple[str, Address]] = []
        self.udp_forwards: list[tuple[Address, Address]] = []
        self.credentials: dict[str, str] | None = None

    def opt_socks(self, endpoint: str) -> None:
        """Listen there for SOCKS5, SOCKS4a and SOCKS4, as tcp:1080:interface=127.0.0.1; repeatable."""
        self.doors.append(("socks", endpoint))

    def opt_http(self, endpoint: str) -> None:
        """Listen there as an HTTP proxy, as tcp:3128:interface=127.0.0.1; repeatable."""
        self.doors.append(("http", endpoint))

    def opt_forward(self, forward: str) -> None:
        """LISTEN_ENDPOINT=HOST:PORT: carry TCP connections to one destination; repeatable."""
        endpoint, equals, destination = forward.rpartition("=")
        if not equals or not endpoint:
            raise ConfigError(f"--forward {forward!r} is not LISTEN_ENDPOINT=HOST:PORT")
        self.forwards.append((endpoint, _named("--forward", parse_address, destination)))

    def opt_forward_udp(self, forward: str) -> None:
        """HOST:PORT=HOST:PORT: carry UDP datagrams to one destination; repeatable."""
        listen, equals, destination = forward.partition("=")
        if not equals:
            raise ConfigError(f"--forward-udp {forward!r} is not HOST:PORT=HOST:PORT")
        local = _named("--forward-udp", parse_address, listen)
        if local.ip is None:
            raise ConfigError(f"--forward-udp listens on an IP address, and {local.host!r} is none")
        self.udp_forwards.append((local, _named("--forward-udp", parse_address, destination)))

    def check_doors(self) -> None:
        """Check that there is a door, and read its passwords.

        :raises ConfigError: if not.
        """
        if not (self.doors or self.forwards or self.udp_forwards):
            raise ConfigError("no front door: give at least one of --socks, --http, --forward and --forward-udp")
        if self["proxy-auth"]:
            self.credentials = read_credentials(self["proxy-auth"])
