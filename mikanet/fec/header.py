"""The FEC header. No I/O.

Little-endian: ``seqid 4 | type 2``, and in data shards ``size 2``, which counts itself and what follows. The coded
region begins at the size, so sizes are coded too; in parity shards those two bytes are parity.

Source: kcp-go ``fec.go``.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct("<IH")
DATA_HEADER = struct.Struct("<IHH")
SIZE = struct.Struct("<H")
#: Where the coded region begins.
CODED_AT = HEADER.size
#: Bytes that a data shard adds to a packet.
OVERHEAD = DATA_HEADER.size

DATA = 0xF1
PARITY = 0xF2
OUT_OF_BAND = 0xF3


def wrap_of(shards: int) -> int:
    """Where seqid goes back to 0: the largest multiple of the group size below 2**32."""
    return 0xFFFFFFFF // shards * shards
