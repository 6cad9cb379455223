"""Megaki: requests and responses with a server whose key is pinned, resumed sessions, and a pool of workers.

The layers carry the names of the Megaki document. On the server, from the bottom: ``yugi`` holds the connections, ``yami``
is the protocol on byte streams, ``pegasus`` the pool of worker processes, ``arcangelo`` the shell inside a worker.
``sazukari`` is the client library, ``gateway`` an HTTP front for it. Underneath are ``wire`` (packet layouts), ``sealing``
(what one session key does) and ``bank`` (the sessions that a server remembers).
"""
