"""What a KCP link is set to, and the stack that the settings make: cipher, FEC, KCP.

The cipher stands below the sessions, not in them: a server must open a packet before it knows whose it is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from twisted.internet.interfaces import IProtocol, IReactorTime
from twisted.logger import Logger

from mikanet.crypto.packet_keys import BLOCKS
from mikanet.crypto.packet_nonces import BlockNonces, OwnNonces, WideNonces
from mikanet.crypto.packet_seen import SeenPackets
from mikanet.crypto.packets import GCM_WARN_PACKETS, GcmCipher, PacketCipher, packet_cipher
from mikanet.errors import ConfigError, LocalProtocolError
from mikanet.fec.filter import FecFilter
from mikanet.fec.header import DATA, OUT_OF_BAND, OVERHEAD, PARITY
from mikanet.fec.reedsolomon import MAX_SHARDS
from mikanet.filters.base import Filter
from mikanet.kcp.filter import DEFAULT_PATIENCE, KcpFilter, Patience, Trust
from mikanet.kcp.pathmtu import BASE_PACKET
from mikanet.kcp.segment import HEADER_LENGTH
from mikanet.kcp.settings import MAX_PACKET, MODES, ArqSettings, Mode
from mikanet.relay import MemoryBudget

#: (first 4 bytes, type): enough to tell FEC from bare KCP, and conv of the latter.
_PEEK = struct.Struct("<IH")
_CONV = struct.Struct("<I")
#: A packet that begins with :func:`conv_bytes` and then a byte below this is bare KCP of that conversation, whatever
#: :func:`conv_of` may find out about others: the quick look at what nearly all packets are.
FEC_TYPES = bytes((DATA & 0xFF,))

RandomBytes = Callable[[int], bytes]
_log = Logger()


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """One end of a KCP link.

    :ivar block: name of the packet cipher; :ivar key: its key, already derived.
    :ivar data_shards: and :ivar parity_shards: of FEC; none unless both are positive.
    :ivar mtu: largest packet after the UDP header, as kcptun and paqet count it.
    :ivar require_proof: (server) hold a session's bytes until its peer is known to be live (Q4).
    :ivar max_probation: (server) sessions whose peers have not proven themselves; and the same from one host.
    :raises ConfigError: if the numbers do not fit each other.
    """

    block: str = "aes"
    key: bytes = field(default=b"", repr=False)
    mode: Mode = MODES["fast"]
    mtu: int = 1350
    snd_wnd: int = 1024
    rcv_wnd: int = 1024
    data_shards: int = 0
    parity_shards: int = 0
    stream: bool = True
    patience: Patience = DEFAULT_PATIENCE
    require_proof: bool = False
    max_sessions: int = 1024
    max_sessions_per_host: int = 64
    max_probation: int = 256
    max_probation_per_host: int = 32

    def __post_init__(self) -> None:
        block = BLOCKS.get(self.block)
        if block is None:
            raise ConfigError(f"{self.block!r} is not a block: give one of {', '.join(BLOCKS)}")
        if len(self.key) < block.key_length:
            raise ConfigError(f"block {self.block} needs a key")
        if self.data_shards < 0 or self.parity_shards < 0 or self.data_shards + self.parity_shards > MAX_SHARDS:
            raise ConfigError(f"there are at most {MAX_SHARDS} data and parity shards together")
        if self.mtu > MAX_PACKET or self.packet_room - self.fec_overhead <= HEADER_LENGTH:
            raise ConfigError(f"an MTU of {self.mtu} does not fit: the most is {MAX_PACKET}")
        self.arq()

    @property
    def has_fec(self) -> bool:
        """Whether this end sends parity."""
        return self.data_shards > 0 and self.parity_shards > 0

    @property
    def fec_overhead(self) -> int:
        """Bytes that FEC adds to a packet."""
        return OVERHEAD if self.has_fec else 0

    @property
    def packet_room(self) -> int:
        """Largest packet inside the cipher."""
        return self.mtu - BLOCKS[self.block].overhead

    def arq(self) -> ArqSettings:
        """The settings of a session."""
        room = self.packet_room - self.fec_overhead
        base = max(0, room - max(0, self.mtu - BASE_PACKET)) if self.stream else 0
        base = base if base > HEADER_LENGTH else 0
        return ArqSettings(self.mode, room, self.snd_wnd, self.rcv_wnd, self.stream, base)


def kcp_stack(
    upper: IProtocol,
    conv: int,
    settings: LinkSettings,
    clock: IReactorTime,
    ts_offset: int = 0,
    trust: Trust = Trust.AT_ONCE,
    budget: MemoryBudget | None = None,
) -> tuple[Filter, KcpFilter]:
    """The filters of one session below ``upper``: the lowest of them, and the KCP one."""
    weight = 1 + settings.parity_shards / settings.data_shards if settings.has_fec else 1.0
    arq = settings.arq()
    kcp = KcpFilter(
        upper,
        conv,
        arq,
        clock,
        settings.patience,
        ts_offset,
        settings.require_proof,
        trust,
        budget,
        weight,
        settings.mtu - arq.mtu,
    )
    if settings.has_fec:
        return FecFilter(kcp, settings.data_shards, settings.parity_shards, clock, kcp.authenticated), kcp
    return kcp, kcp


def random_u32(random_bytes: RandomBytes) -> int:
    """32 random bits."""
    return int.from_bytes(random_bytes(4), "little")


def conv_bytes(conv: int) -> bytes:
    """What packets of a conversation begin with, without FEC."""
    return _CONV.pack(conv)


def conv_of(body: bytes) -> int | None:
    """The conversation that an opened packet belongs to; None for FEC parity, which does not say; -1 for neither."""
    if len(body) < 12:
        return -1
    conv, kind = _PEEK.unpack_from(body)
    if DATA <= kind <= OUT_OF_BAND:
        return None if kind == PARITY else int(_CONV.unpack_from(body, OVERHEAD)[0]) if kind == DATA else -1
    return int(conv)


def kcp_datagram(body: bytes) -> bytes:
    """The KCP datagram in an opened packet, whether it has an FEC header or not."""
    kind = _PEEK.unpack_from(body)[1]
    return body[OVERHEAD:] if kind == DATA else body


class PacketSealer:
    """The cipher of a link with its memory of packets: shared by all sessions of one key; see :func:`shared_sealer`.

    :ivar refused: packets that were too short or failed their check; :ivar repeated: those that passed before, or are
        our own.
    """

    def __init__(self, settings: LinkSettings, random_bytes: RandomBytes) -> None:
        # Without a nonce two packets may well be the same.
        self._own: OwnNonces | None = None
        self._seen: SeenPackets | None = None
        if settings.block != "null":
            self._own = (WideNonces if settings.block == "aes-128-gcm" else BlockNonces)(random_bytes)
            self._seen = SeenPackets()
        nonces = random_bytes if self._own is None else self._own.take
        self._cipher: PacketCipher = packet_cipher(settings.block, settings.key, nonces)
        self._counts_packets = isinstance(self._cipher, GcmCipher)
        self._said: set[str] = set()
        self.refused = 0
        self.repeated = 0

    def seal(self, bodies: Iterable[bytes]) -> list[bytes]:
        """Packets to send; none once the key is used up (Q2)."""
        try:
            packets = self._cipher.seal(bodies if isinstance(bodies, list) else list(bodies))
        except LocalProtocolError as problem:
            self._say_once(f"nothing is sent any more: {problem}")
            return []
        if self._counts_packets and self._cipher.sealed >= GCM_WARN_PACKETS:  # type: ignore[attr-defined]  # it counts
            self._say_once("this aes-128-gcm key has sealed a quarter of what it may: set a new key soon")
        return packets

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            _log.warn("{text}", text=text)

    def open(self, packets: list[bytes]) -> list[bytes]:
        """The bodies of the packets that are good and new. Longer ones than there are, are not."""
        count = len(packets)
        shortest = self._cipher.overhead
        packets = [packet for packet in packets if shortest <= len(packet) <= MAX_PACKET]
        self.refused += count - len(packets)
        if not packets:
            return []
        if self._own is not None:
            own = self._own.own(packets)
            if True in own:
                self.repeated += sum(own)
                packets = [packet for packet, mine in zip(packets, own, strict=True) if not mine]
        opened = self._cipher.open(packets)
        if None in opened:
            packets = [packet for packet, body in zip(packets, opened, strict=True) if body is not None]
        bodies = [body for body in opened if body is not None]
        self.refused += len(opened) - len(bodies)
        if self._seen is None:
            return bodies
        passed_before = self._seen.passed_before(packets)
        if True in passed_before:
            self.repeated += sum(passed_before)
            return [body for body, old in zip(bodies, passed_before, strict=True) if not old]
        return bodies


_sealers: WeakValueDictionary[tuple[str, bytes, bool, RandomBytes], PacketSealer] = WeakValueDictionary()


def shared_sealer(settings: LinkSettings, random_bytes: RandomBytes, server: bool) -> PacketSealer:
    """The sealer that all servers, or all clients, of one key in this process share.

    Each knows its own packets, wherever they come back; and a key is used up once. A server and a client of one key in
    one process may well be meant to talk to each other, so those two know nothing of each other.
    """
    name = (settings.block, settings.key, server, random_bytes)
    sealer = _sealers.get(name)
    if sealer is None:
        sealer = _sealers[name] = PacketSealer(settings, random_bytes)
    return sealer
