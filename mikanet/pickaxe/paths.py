"""What a session knows of a carrier: a path. Plain Python, no I/O."""

from __future__ import annotations


class Path:
    """One way that packets can travel, for as long as it exists.

    :ivar reliable: whether what it takes arrives, once and in order, while it lives.
    :ivar lost: whether it is gone; what it took may be lost.
    :ivar heard: when a new authentic packet last came by it. One that only repeats what was seen says nothing of now.
    :ivar answered: when a probe's answer last came by it, which is a repeated packet.
    :ivar new: how many new packets came by it. :ivar answers: how many answers to probes.
    :ivar proven: whether a new packet came by it: the peer holds the key, and does not merely repeat what it saw.
    :ivar rate: bytes per second that were acknowledged lately while it was in use, where that is measured.
    :ivar shown: whether we have sent such a packet by it for no other reason than this.
    """

    __slots__ = ("answered", "answers", "heard", "lost", "new", "proven", "rate", "reliable", "shown")

    def __init__(self, reliable: bool) -> None:
        self.reliable = reliable
        self.lost = False
        self.heard = self.answered = float("-inf")
        self.rate = 0.0
        self.new = self.answers = 0
        self.proven = self.shown = False
