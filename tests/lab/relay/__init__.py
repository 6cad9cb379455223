"""The wire between processes: a UDP relay and a TCP relay on real sockets, without root.

Put one in front of a server and point the client at it. Both take the reactor as an argument and can run inside a
trial test or, by ``python -m tests.lab wire``, as a process of their own.
"""

from tests.lab.relay.tcp import TCPRelay
from tests.lab.relay.udp import UDPRelay

__all__ = ["TCPRelay", "UDPRelay"]
