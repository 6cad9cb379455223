"""Scenarios: what a wire does to the traffic that crosses it, in one line of text. No I/O.

A scenario is a run of words, ``name=value``, parted by blanks; a word holds for both directions unless it ends in
``@up`` (from the first end, the client, to the second) or ``@down``::

    delay=15ms bandwidth=10Mbps queue=25 loss@up=30% loss-burst@up=3 blackhole-on=5s blackhole-off=2s

The words that the simulator of the QUIC interop runner has mean here what they mean there. ``docs/lab/wire.rst`` says
for each word what it does; :data:`WORDS` is the one list of them.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple


class ScenarioError(ValueError):
    """A scenario's text says something that no wire, or not this carrier, can do. One line."""


class Direction(enum.Enum):
    """Which way traffic goes: up is from the first end (the client), down is towards it."""

    UP = "up"
    DOWN = "down"

    @property
    def opposite(self) -> Direction:
        """The other one."""
        return Direction.DOWN if self is Direction.UP else Direction.UP


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What happens in one direction. Times in seconds, rates in bits or packets per second, chances from 0 to 1."""

    delay: float = 0.0
    jitter: float = 0.0
    bandwidth: float = 0.0
    queue: int = 0
    mtu: int = 0
    loss: float = 0.0
    loss_burst: int = 0
    loss_run: float = 0.0
    droplist: frozenset[int] = frozenset()
    corrupt: float = 0.0
    forge: float = 0.0
    duplicate: float = 0.0
    duplicate_after: float = 0.001
    reorder: float = 0.0
    reorder_by: float = 0.01
    mirror: float = 0.0
    inject: float = 0.0
    blackhole_on: float = 0.0
    blackhole_off: float = 0.0
    rebind_first: float = 0.0
    rebind_freq: float = 0.0
    rebind: str = "port"
    record: str = ""
    replay: str = ""
    fragment: tuple[int, int] = (0, 0)
    fragment_gap: float = 0.0
    flip: frozenset[int] = frozenset()
    cut_after: int = 0
    cut_at: float = 0.0
    cut: str = "reset"


class Carrier(enum.Flag):
    """What a word can be applied to."""

    PACKETS = enum.auto()
    STREAMS = enum.auto()


_PACKETS, _STREAMS, _BOTH = Carrier.PACKETS, Carrier.STREAMS, Carrier.PACKETS | Carrier.STREAMS


def _number(text: str, units: Mapping[str, float]) -> float:
    """A number of at least 0 with an optional unit."""
    for unit in sorted(units, key=len, reverse=True):
        if text.endswith(unit) and text != unit:
            number = text[: len(text) - len(unit)]
            break
    else:
        raise ValueError(text)
    value = float(number) * units[unit]
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_RATES = {"kbps": 1e3, "Mbps": 1e6, "Gbps": 1e9, "bps": 1.0, "": 1.0}
_SIZES = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "B": 1.0, "": 1.0}


def parse_time(text: str) -> float:
    """Seconds of ``15ms``, ``5s``, ``2m``, ``1h``, ``300us`` or a bare number of seconds."""
    return _number(text, _TIMES)


def parse_size(text: str) -> int:
    """Bytes of ``100KB``, ``1MiB`` or a bare number of bytes."""
    return int(_number(text, _SIZES))


def _plain(text: str) -> float:
    return _number(text, {"": 1.0})


def _bandwidth(text: str) -> float:
    return _number(text, _RATES)


def _per_second(text: str) -> float:
    return _plain(text.removesuffix("/s"))


def _chance(text: str) -> float:
    value = _number(text, {"%": 0.01, "": 1.0})
    if value > 1:
        raise ValueError(text)
    return value


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(text)
    return int(text)


def _numbers(text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        run = range(_count(first), _count(last or first) + 1)
        if not 0 < len(run) <= 1_000_000:
            raise ValueError(text)
        found.update(run)
    return frozenset(found)


def _sizes(text: str) -> tuple[int, int]:
    smallest, _, largest = text.partition("-")
    sizes = _count(smallest), _count(largest or smallest)
    if not 1 <= sizes[0] <= sizes[1]:
        raise ValueError(text)
    return sizes


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(text)
        return text

    return parse


def _file(text: str) -> str:
    if not text:
        raise ValueError(text)
    return text


def _format_numbers(numbers: frozenset[int]) -> str:
    return ",".join(map(str, sorted(numbers)))


def _format_sizes(sizes: tuple[int, int]) -> str:
    return f"{sizes[0]}-{sizes[1]}"


class Word(NamedTuple):
    """One word of the language."""

    parse: Callable[[str], Any]
    carrier: Carrier
    form: str
    format: Callable[[Any], str] = repr


#: Every word: how it is read, on which carriers it works, and the form that is shown for it.
WORDS: dict[str, Word] = {
    "delay": Word(parse_time, _BOTH, "15ms"),
    "jitter": Word(parse_time, _BOTH, "2ms"),
    "bandwidth": Word(_bandwidth, _BOTH, "10Mbps"),
    "queue": Word(_count, _PACKETS, "25"),
    "mtu": Word(_count, _PACKETS, "1400"),
    "loss": Word(_chance, _PACKETS, "10%"),
    "loss-burst": Word(_count, _PACKETS, "3"),
    "loss-run": Word(_plain, _PACKETS, "4"),
    "droplist": Word(_numbers, _PACKETS, "2,3,4 or 2-4", _format_numbers),
    "corrupt": Word(_chance, _PACKETS, "0.1%"),
    "forge": Word(_chance, _PACKETS, "0.1%"),
    "duplicate": Word(_chance, _PACKETS, "1%"),
    "duplicate-after": Word(parse_time, _PACKETS, "1ms"),
    "reorder": Word(_chance, _PACKETS, "5%"),
    "reorder-by": Word(parse_time, _PACKETS, "10ms"),
    "mirror": Word(_chance, _PACKETS, "1%"),
    "inject": Word(_per_second, _PACKETS, "100/s"),
    "blackhole-on": Word(parse_time, _BOTH, "5s"),
    "blackhole-off": Word(parse_time, _BOTH, "2s"),
    "rebind-first": Word(parse_time, _PACKETS, "1s"),
    "rebind-freq": Word(parse_time, _PACKETS, "5s"),
    "rebind": Word(_one_of("port", "address"), _PACKETS, "port or address", str),
    "record": Word(_file, _BOTH, "FILE", str),
    "replay": Word(_file, _BOTH, "FILE", str),
    "fragment": Word(_sizes, _STREAMS, "1-64", _format_sizes),
    "fragment-gap": Word(parse_time, _STREAMS, "1ms"),
    "flip": Word(_numbers, _STREAMS, "4097 or 1-8", _format_numbers),
    "cut-after": Word(parse_size, _STREAMS, "100KB"),
    "cut-at": Word(parse_time, _STREAMS, "5s"),
    "cut": Word(_one_of("reset", "fin"), _STREAMS, "reset or fin", str),
}

_DEFAULT = Conditions()


@dataclasses.dataclass(frozen=True)
class Scenario:
    """The conditions of both directions. ``str()`` of it is a text that parses to the same scenario."""

    up: Conditions = _DEFAULT
    down: Conditions = _DEFAULT

    @classmethod
    def parse(cls, text: str) -> Scenario:
        """A scenario from its text; a later word of the same name and direction takes the place of an earlier one.

        :raises ScenarioError: naming the word that is unknown, badly written or without its companion.
        """
        found: dict[Direction, dict[str, Any]] = {Direction.UP: {}, Direction.DOWN: {}}
        for item in text.split():
            name, directions, value = _parse_word(item)
            for direction in directions:
                found[direction][name.replace("-", "_")] = value
        scenario = cls(Conditions(**found[Direction.UP]), Conditions(**found[Direction.DOWN]))
        for conditions in (scenario.up, scenario.down):
            _check(conditions)
        if (scenario.down.rebind_first or scenario.down.rebind_freq) and scenario.down != scenario.up:
            _check_rebind(scenario)
        return scenario

    def towards(self, direction: Direction) -> Conditions:
        """The conditions of one direction."""
        return self.up if direction is Direction.UP else self.down

    def require(self, carrier: Carrier) -> None:
        """Refuse words that have no meaning on a carrier: a TCP stream, for one, loses no bytes.

        :raises ScenarioError: naming the first such word.
        """
        for name, _, _ in self._words():
            if carrier not in WORDS[name].carrier:
                kind = "streams" if carrier is Carrier.STREAMS else "packets"
                raise ScenarioError(f"the word {name} has no meaning for {kind}")

    def _words(self) -> Iterator[tuple[str, str, Any]]:
        for name in WORDS:
            attribute = name.replace("-", "_")
            up, down, default = (getattr(conditions, attribute) for conditions in (self.up, self.down, _DEFAULT))
            if up == down:
                if up != default:
                    yield name, "", up
                continue
            for suffix, value in (("@up", up), ("@down", down)):
                if value != default:
                    yield name, suffix, value

    def __str__(self) -> str:
        return " ".join(f"{name}{suffix}={WORDS[name].format(value)}" for name, suffix, value in self._words())


def _parse_word(item: str) -> tuple[str, tuple[Direction, ...], Any]:
    left, equals, text = item.partition("=")
    name, at, direction = left.partition("@")
    word = WORDS.get(name)
    if word is None or not equals:
        raise ScenarioError(f"no such word in a scenario: {item!r}; the words are {', '.join(WORDS)}")
    if at and direction not in ("up", "down"):
        raise ScenarioError(f"{item!r}: a direction is @up or @down")
    try:
        value = word.parse(text)
    except ValueError:
        raise ScenarioError(f"{item!r} cannot be read; the form is {name}={word.form}") from None
    return name, (Direction(direction),) if at else tuple(Direction), value


def _check_rebind(scenario: Scenario) -> None:
    for name in ("rebind_first", "rebind_freq"):
        if getattr(scenario.down, name) and not getattr(scenario.up, name):
            raise ScenarioError("it is the client that gets a new address: write rebind words without @down")


def _check(conditions: Conditions) -> None:
    for first, second in (("blackhole_off", "blackhole_on"), ("queue", "bandwidth"), ("loss_burst", "loss")):
        if getattr(conditions, first) and not getattr(conditions, second):
            raise ScenarioError(f"{first.replace('_', '-')} says nothing without {second.replace('_', '-')}")
    if conditions.loss_run and conditions.loss_burst:
        raise ScenarioError("loss-run and loss-burst are two ways to say the same thing: choose one")
    if conditions.loss_run and (conditions.loss_run < 1 or conditions.loss >= 1):
        raise ScenarioError("loss-run is a mean length of at least 1, for a loss below 100%")
