"""What this machine knows of names by itself: how they are written, its hosts file, its name servers. No I/O."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass

import idna

from mikanet.address import IPAddress, parse_ip
from mikanet.errors import DestinationError, Reason

#: Longest name and label, in bytes without the trailing dot (RFC 1035, section 2.3.4).
MAX_NAME, MAX_LABEL = 253, 63

#: Most name servers and search domains that are used, as the C library does.
MAX_SERVERS, MAX_SEARCH = 3, 6


def to_ascii(name: str) -> str:
    """A name as name servers are asked for it: lower case, without a trailing dot.

    A name of ASCII letters goes as it is: underscores, hyphens anywhere, whatever the zone has. Others are mapped by
    UTS 46 and encoded by IDNA 2008, as browsers do.

    :raises DestinationError: if it can be no name.
    """
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True, transitional=False).decode("ascii")
        except (idna.IDNAError, UnicodeError):
            raise DestinationError(Reason.HOST_UNREACHABLE, "not a host name") from None
    name = name.lower().removesuffix(".")
    labels = name.split(".")
    if (
        not name
        or len(name) > MAX_NAME
        or not all(0 < len(label) <= MAX_LABEL for label in labels)
        or any(not 0x21 <= ord(letter) <= 0x7E for letter in name)
    ):
        raise DestinationError(Reason.HOST_UNREACHABLE, "not a host name")
    return name


@dataclass(frozen=True)
class ResolverConfig:
    """What ``resolv.conf`` says.

    :ivar servers: addresses of name servers, in their order. :ivar search: domains for names without a dot.
    """

    servers: tuple[str, ...] = ("127.0.0.1",)
    search: tuple[str, ...] = ()


def parse_resolv_conf(text: str) -> ResolverConfig:
    """Read ``resolv.conf``; what is not understood is skipped, as the C library does."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver" and parse_ip(words[1].partition("%")[0]) is not None:
            servers.append(words[1])
        elif words[0] in ("search", "domain"):
            search = tuple(words[1:] if words[0] == "search" else words[1:2])
    kept = []
    for domain in search[:MAX_SEARCH]:
        try:
            kept.append(to_ascii(domain))
        except DestinationError:
            continue
    return ResolverConfig(tuple(servers[:MAX_SERVERS]) or ("127.0.0.1",), tuple(kept))


def parse_hosts(text: str) -> dict[str, tuple[IPAddress, ...]]:
    """Read a hosts file: the addresses of each name, in the file's order."""
    found: dict[str, list[IPAddress]] = {}
    for line in text.splitlines():
        words = line.split("#")[0].split()
        ip = parse_ip(words[0].partition("%")[0]) if words else None
        if ip is None:
            continue
        for word in words[1:]:
            try:
                known = found.setdefault(to_ascii(word), [])
            except DestinationError:
                continue
            if ip not in known:
                known.append(ip)
    return {name: tuple(addresses) for name, addresses in found.items()}


#: Both addresses of this machine itself.
LOOPBACK: tuple[IPAddress, ...] = (ipaddress.IPv6Address("::1"), ipaddress.IPv4Address("127.0.0.1"))


def is_localhost(name: str) -> bool:
    """Whether a name is this machine's own by its form, whatever name servers say (RFC 6761, section 6.3)."""
    return name == "localhost" or name.endswith(".localhost")


class NameCache:
    """Answers by name, each until its time; the oldest go when there are too many. No I/O.

    :param most: names.
    """

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._found: OrderedDict[str, tuple[float, tuple[IPAddress, ...] | DestinationError]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, name: str, now: float) -> tuple[IPAddress, ...] | DestinationError | None:
        """What is known of a name at the time ``now``: addresses, why there are none, or nothing."""
        entry = self._found.get(name)
        if entry is None:
            return None
        if entry[0] <= now:
            del self._found[name]
            return None
        return entry[1]

    def put(self, name: str, answer: tuple[IPAddress, ...] | DestinationError, until: float) -> None:
        """Keep an answer until a time."""
        self._found[name] = (until, answer)
        self._found.move_to_end(name)
        if len(self._found) > self._most:
            self._found.popitem(last=False)
