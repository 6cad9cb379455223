"""``kcp:HOST:PORT[:...]`` and ``kcp:PORT[:interface=ADDRESS][:...]``: a byte stream over KCP over UDP.

Without more arguments it is the link of Mika's original; with them, the outer layers of kcptun.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from twisted.logger import Logger

from mikanet.address import parse_port
from mikanet.crypto.packet_keys import Kdf, block_named, derive_key
from mikanet.errors import ConfigError
from mikanet.kcp.endpoints import KcpClientEndpoint, KcpServerEndpoint
from mikanet.kcp.link import LinkSettings
from mikanet.kcp.settings import KCPTUN_MODES, MODES, Mode
from mikanet.service.secret_files import read_secret

_log = Logger()

#: Mika's original KCP link: nodelay 1, 20 ms, resend 2, nc 1, acknowledgements without delay.
MIKA_MODE = Mode(1, 20, 2, 1, write_delay=False, ack_no_delay=True)
MIKA_CLIENT = LinkSettings(
    block="null", mode=MIKA_MODE, mtu=1400, snd_wnd=128, rcv_wnd=1024, data_shards=10, parity_shards=3
)
MIKA_SERVER = replace(MIKA_CLIENT, snd_wnd=1024)

_NUMBERS = {"mtu": "mtu", "sndwnd": "snd_wnd", "rcvwnd": "rcv_wnd", "dshard": "data_shards", "pshard": "parity_shards"}
_MANUAL = {"nodelay": "nodelay", "interval": "interval_ms", "resend": "resend", "nc": "nc"}
_KDFS = {"kcptun": (Kdf.KCPTUN, KCPTUN_MODES), "paqet": (Kdf.PAQET, MODES)}


def parse_client(reactor: Any, host: str, port: str, **arguments: str) -> KcpClientEndpoint:
    """The endpoint of ``kcp:HOST:PORT[:block=aes:key-file=FILE:kdf=kcptun:dshard=10:pshard=3:mode=fast2:mtu=1350...]``.

    :raises ConfigError: as :func:`parse_link`.
    """
    return KcpClientEndpoint(reactor, host, parse_port(port), parse_link(arguments, MIKA_CLIENT))


def parse_server(reactor: Any, port: str, interface: str = "", **arguments: str) -> KcpServerEndpoint:
    """The endpoint of ``kcp:PORT[:interface=ADDRESS][:block=...]``.

    :raises ConfigError: as :func:`parse_link`.
    """
    return KcpServerEndpoint(reactor, parse_port(port), interface, parse_link(arguments, MIKA_SERVER))


def parse_link(arguments: Mapping[str, str], base: LinkSettings) -> LinkSettings:
    """The settings that the arguments of a ``kcp:`` string ask for.

    :raises ConfigError: for an argument that does not exist, is wrong, or is missing.
    """
    rest = dict(arguments)
    insecure_ok = _flag(rest, "insecure-ok", False)
    changes: dict[str, Any] = {field: _number(rest, name) for name, field in _NUMBERS.items() if name in rest}
    kdf_name = rest.pop("kdf", "kcptun")
    if kdf_name not in _KDFS:
        raise ConfigError(f"kdf is kcptun or paqet, not {kdf_name!r}")
    kdf, modes = _KDFS[kdf_name]
    changes |= _cipher(rest, kdf, insecure_ok)
    changes["mode"] = _mode(rest, modes, base.mode)
    if "idle-timeout" in rest:
        changes["patience"] = replace(base.patience, idle=_number(rest, "idle-timeout"))
    if rest:
        raise ConfigError(f"kcp: there is no argument {', '.join(sorted(rest))}")
    return replace(base, **changes)


def _cipher(rest: dict[str, str], kdf: Kdf, insecure_ok: bool) -> dict[str, Any]:
    name, key_file = rest.pop("block", None), rest.pop("key-file", None)
    if name is None:
        if key_file is not None:
            raise ConfigError("kcp: key-file needs block as well")
        return {}  # no cipher: what runs above encrypts
    block = block_named(name, insecure_ok)
    if not block.protects:
        _log.warn("kcp: block {name} does not protect what it carries", name=name)
    if not block.key_length:
        return {"block": name}
    if key_file is None:
        raise ConfigError(f"kcp: block={name} needs key-file")
    return {"block": name, "key": derive_key(read_secret(key_file, insecure_ok), kdf)}


def _mode(rest: dict[str, str], modes: Mapping[str, Mode], base: Mode) -> Mode:
    name = rest.pop("mode", None)
    if name == "manual":
        mode = Mode(0, 0, 0, 0)
    elif name is None:
        mode = base
    elif name in modes:
        mode = modes[name]
    else:
        raise ConfigError(f"there is no mode {name!r}: give manual or one of {', '.join(modes)}")
    numbers: dict[str, Any] = {field: _number(rest, key) for key, field in _MANUAL.items() if key in rest}
    mode = replace(mode, **numbers)
    return replace(
        mode,
        write_delay=_flag(rest, "wdelay", mode.write_delay),
        ack_no_delay=_flag(rest, "acknodelay", mode.ack_no_delay),
    )


def _number(rest: dict[str, str], name: str) -> int:
    text = rest.pop(name)
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise ConfigError(f"kcp: {name}={text} is not a number")
    return int(text)


def _flag(rest: dict[str, str], name: str, default: bool) -> bool:
    text = rest.pop(name, None)
    if text is None:
        return default
    if text not in ("yes", "no"):
        raise ConfigError(f"kcp: {name} is yes or no, not {text!r}")
    return text == "yes"
