"""The wire in memory: a packet link, a datagram network and a stream pair on a test clock.

Three carriers of the same scenario words, for tests of protocols without sockets and without waiting::

    clock = task.Clock()
    wire = Wire("delay=15ms loss=10%", seed=1, clock=clock)
    wire.first.attach(client_protocol)  # an IPacketTransport
    wire.second.attach(server_protocol)
    advance(clock, 5.0)
"""

from tests.lab.memory.carrier import advance
from tests.lab.memory.datagrams import DatagramNet, MemoryHost, MemoryPort
from tests.lab.memory.packets import PacketEnd, Wire
from tests.lab.memory.streams import StreamEnd, StreamWire

__all__ = ["DatagramNet", "MemoryHost", "MemoryPort", "PacketEnd", "StreamEnd", "StreamWire", "Wire", "advance"]
