"""What a session knows of a carrier: a path. Plain Python, no I/O."""

from __future__ import annotations


class Path:
    """One way that packets can travel, for as long as it exists.

    :ivar reliable: whether what it takes arrives, once and in order, while it lives.
    :ivar lost: whether it is gone; what it took may be lost.
    :ivar heard: when an authentic packet last came by it.
    :ivar proven: whether one came that shows that the peer holds the key now, and does not merely repeat what it saw.
    """

    __slots__ = ("heard", "lost", "proven", "reliable")

    def __init__(self, reliable: bool) -> None:
        self.reliable = reliable
        self.lost = False
        self.heard = float("-inf")
        self.proven = False
