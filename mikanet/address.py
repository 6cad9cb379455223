"""Ground floor: where a stream or datagram is to go, as text and as a value. No I/O."""

from __future__ import annotations

import functools
import ipaddress
from dataclasses import dataclass

from mikanet.errors import ConfigError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Longest host name that the wire formats can carry, in bytes (one length byte).
MAX_HOST_LENGTH = 255


@dataclass(frozen=True, slots=True)
class Address:
    """A destination: a host (IP address text or name, IPv6 without brackets) and a port 0..65535."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def ip(self) -> IPAddress | None:
        """The host as an IP address, or None when it is a name."""
        return parse_ip(self.host)


@functools.lru_cache(maxsize=4096)
def parse_ip(text: str) -> IPAddress | None:
    """``text`` as an IP address in its usual form, or None."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def parse_port(text: str) -> int:
    """A port number 1..65535 from decimal ASCII digits.

    :raises ConfigError: for anything else.
    """
    if text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535:
        return int(text)
    raise ConfigError(f"{text!r} is not a port number: give one of 1 to 65535")


def parse_address(text: str) -> Address:
    """``HOST:PORT`` or ``[IPV6]:PORT`` as an :class:`Address`.

    :raises ConfigError: if a part is missing or wrong.
    """
    host, separator, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if parse_ip(host) is None:
            raise ConfigError(f"{text!r}: what stands in the brackets is not an IPv6 address")
    elif ":" in host:
        raise ConfigError(f"{text!r}: write an IPv6 address in brackets, as in [2001:db8::1]:80")
    if not separator or not host:
        raise ConfigError(f"{text!r} is not HOST:PORT")
    if not host.isprintable() or " " in host:
        raise ConfigError(f"{host!r} is no host name")
    if len(host.encode("utf-8", "replace")) > MAX_HOST_LENGTH:
        raise ConfigError(f"{host[:20]!r}... is longer than a host name can be")
    return Address(host, parse_port(port))


def network_of(host: str) -> str:
    """What counts as one network: the /24 of an IPv4 address, the /48 of an IPv6 one."""
    ip = parse_ip(host.partition("%")[0])
    if ip is None:
        return host
    if ip.version == 6 and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.packed[: 3 if ip.version == 4 else 6].hex()
