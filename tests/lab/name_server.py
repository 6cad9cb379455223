"""A name server of the test's own, with names that it never answers."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

from mikanet.wire import dns


class NameServer:
    """Answers A and AAAA over UDP and TCP on one port of loopback, by the first label of the name.

    ``silent``: never. ``none``: NXDOMAIN. ``long``: too long for UDP. ``broken``: SERVFAIL. ``four``: no answer to AAAA.
    ``forged``: first an answer with another number, another question, and one that is no message. Others: an address of each.

    :param address: the IPv4 address that all names have.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, address: str = "192.0.2.1") -> None:
        self._address = socket.inet_aton(address)
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((host, port))
        self.port = self.udp.getsockname()[1]
        self.tcp = socket.create_server((host, self.port))
        self.asked: list[str] = []
        self.sources: set[tuple[str, int]] = set()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._serve_udp, self._serve_tcp)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Answer no more, and leave the port."""
        for sock in (self.udp, self.tcp):
            with contextlib.suppress(OSError):  # not connected, says UDP, and wakes the thread all the same
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        self.udp.close()
        self.tcp.close()

    def _serve_udp(self) -> None:
        while True:
            try:
                data, peer = self.udp.recvfrom(4096)
            except OSError:
                return
            if not data:
                return  # shut down
            self.sources.add(peer)
            for answer in self._answers(data, over_tcp=False):
                self.udp.sendto(answer, peer)

    def _serve_tcp(self) -> None:
        while True:
            try:
                connection, _ = self.tcp.accept()
            except OSError:
                return
            with connection:
                length = struct.unpack("!H", connection.recv(2))[0]
                for answer in self._answers(connection.recv(length), over_tcp=True):
                    connection.sendall(struct.pack("!H", len(answer)) + answer)

    def _answers(self, data: bytes, over_tcp: bool) -> list[bytes]:
        message = dns.Message.decode(data)
        question = message.questions[0]
        name = dns.text_of(question.name)
        label = name.partition(".")[0].rstrip("0123456789")
        self.asked.append(name)
        flags = dns.QR | dns.RD | dns.RA
        address = self._address if question.type == dns.A else bytes.fromhex("20010db8000000000000000000000001")
        good = dns.Message(
            message.ident, flags, [question], [dns.Record(question.name, question.type, address, 30)]
        ).encode()
        if label == "silent" or (label == "four" and question.type == dns.AAAA):
            return []
        if label == "none":
            return [dns.Message(message.ident, flags | dns.NXDOMAIN, [question]).encode()]
        if label == "broken":
            return [dns.Message(message.ident, flags | dns.SERVFAIL, [question]).encode()]
        if label == "many" and not over_tcp:
            return [dns.Message(message.ident, flags | dns.TC, [question]).encode()] * 50
        if label == "only":
            records = [dns.Record(question.name, question.type, address, 30)] if question.type == dns.A else []
            return [dns.Message(message.ident, flags, [question], records).encode()]
        if label == "long" and not over_tcp:
            return [dns.Message(message.ident, flags | dns.TC, [question]).encode()]
        if label == "forged":
            evil = dns.Record(question.name, question.type, address[:-1] + b"\x66", 30)
            other = dns.Question(dns.name_of("other.example"), question.type)
            return [
                dns.Message(message.ident ^ 0x1000, flags, [question], [evil]).encode(),
                dns.Message(message.ident, flags, [other], [evil]).encode(),
                b"\xff" * 40,
                good,
            ]
        return [good]
