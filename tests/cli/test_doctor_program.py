"""What the doctor reads out of the command lines of programs, and what it says of certificates and ports."""

from __future__ import annotations

import datetime
import io
import json
import socket

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.trial.unittest import SynchronousTestCase

from mikanet.cli.doctor_clock import OFFSETS
from mikanet.cli.doctor_findings import Finding, Status, note, ok, problem, show_json
from mikanet.cli.doctor_net import Place, judge_certificate, place_findings, place_of
from mikanet.cli.doctor_program import _without, port_finding


class PlaceTests(SynchronousTestCase):
    """Endpoint strings and servers."""

    def test_places(self) -> None:
        """In every form, also within another one and through two levels of quotes."""
        for text, expected in (
            ("tcp:example.com:8388", Place("example.com", 8388)),
            ("tcp:[2001:db8::1]:443", Place("2001:db8::1", 443)),
            ("host:192.0.2.1:1:timeout=5", Place("192.0.2.1", 1)),
            ("kcp:example.com:29900:block=aes", Place("example.com", 29900, udp=True)),
            ("obfs-http:tcp\\:example.com\\:80:url=http\\://a/b", Place("example.com", 80)),
            ("obfs-http:obfs-http\\:tcp\\\\\\:example.com\\\\\\:80", Place("example.com", 80)),
            ("unix:/run/x", None),
        ):
            self.assertEqual(place_of(text), expected, text)

    def test_refused(self) -> None:
        """A port where nothing listens is a problem with a fix that names the server's program."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            found = list(place_findings(Place("127.0.0.1", taken.getsockname()[1]), "mika-server"))
        self.assertEqual([finding.status for finding in found], [Status.OK, Status.OK, Status.PROBLEM])
        self.assertIn("mikanet mika-server", found[-1].mend)

    def test_ports(self) -> None:
        """A free port is well; a taken one is noted with who has it."""
        with socket.create_server(("", 0)) as taken:
            number = taken.getsockname()[1]
            finding = port_finding(number, socket.SOCK_STREAM)
            self.assertEqual(finding.status, Status.NOTE)
            self.assertIn("process ", finding.text)
        self.assertEqual(port_finding(number, socket.SOCK_STREAM).status, Status.OK)


class WordsTests(SynchronousTestCase):
    """Options that the doctor replaces."""

    def test_without(self) -> None:
        """With their values, in both forms; nothing else goes."""
        words = [
            "--socks",
            "tcp:1",
            "--http=tcp:2",
            "--server",
            "tcp:a:1",
            "--verbose",
            "--state-dir",
            "x",
            "--socksy=1",
        ]
        self.assertEqual(
            _without(words, frozenset({"socks", "http"})), ["--server", "tcp:a:1", "--verbose", "--socksy=1"]
        )

    def test_offsets(self) -> None:
        """A turn of other times stays below what a server takes from one address, and leaves no gap of minutes."""
        self.assertTrue(all(len(offsets) < 32 for offsets in OFFSETS))
        self.assertEqual(sorted(OFFSETS[0]), [each * 60 for each in range(-8, 9) if each])

    def test_json(self) -> None:
        """One object a line."""
        out = io.StringIO()
        findings: list[Finding] = [ok("a", "well"), note("b", "so so", "do"), problem("c", "bad", "do that")]
        self.assertEqual(show_json(iter(findings), out), 1)
        rows = [json.loads(line) for line in out.getvalue().splitlines()]
        self.assertEqual([row["status"] for row in rows], ["ok", "note", "problem"])
        self.assertEqual(rows[2], {"status": "problem", "check": "c", "text": "bad", "fix": "do that"})


class CertificateTests(SynchronousTestCase):
    """For whom and until when."""

    def certificate(self, names: list[str], begins: float, ends: float) -> x509.Certificate:
        """One that is valid from and to so many days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now + datetime.timedelta(days=begins))
            .not_valid_after(now + datetime.timedelta(days=ends))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(each) for each in names]), critical=False)
        )
        return builder.sign(key, hashes.SHA256())

    def test_judgements(self) -> None:
        """Another name, too early, expired, soon, fine; names with a star."""
        for names, begins, ends, name, expected in (
            (["a.example"], -1, 90, "a.example", [("ok", "until")]),
            (["*.example.com"], -1, 90, "A.example.com.", [("ok", "until")]),
            (["*.example.com"], -1, 90, "a.b.example.com", [("PROBLEM", "not for a.b.example.com"), ("ok", "until")]),
            (["a.example"], -1, 3, "a.example", [("note", "ends in")]),
            (["a.example"], -9, -1, "a.example", [("PROBLEM", "has expired")]),
            (["a.example"], 1, 9, "a.example", [("PROBLEM", "is this clock right")]),
        ):
            found = list(judge_certificate(self.certificate(names, begins, ends), name))
            self.assertEqual([finding.status.value for finding in found], [status for status, _ in expected], found)
            for finding, (_, words) in zip(found, expected, strict=True):
                self.assertIn(words, finding.text)
