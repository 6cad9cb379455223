"""Mika: a SOCKS5/HTTP proxy tunnel over one TCP connection per stream.

``wire`` has the byte layouts, ``session`` the two ends as state machines without I/O, ``protocol`` their Twisted classes
for the server, ``client`` for the client, ``service`` and ``tap`` the services and their command lines.
"""
