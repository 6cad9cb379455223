"""``mikanet doctor``: its table, files and URLs; with links it is in ``tests/interop/test_rawpackets_tools.py``."""

from __future__ import annotations

import sys
from io import StringIO
from pathlib import Path
from types import ModuleType
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from mikanet.cli import doctor
from mikanet.cli.dissect import Verdict
from mikanet.cli.doctor import Options, file_findings, run
from mikanet.cli.doctor_findings import Status, note, ok, problem, show
from mikanet.cli.doctor_link import _explain, _judge_packets, _Seen
from mikanet.cli.dump import make_dissector
from mikanet.counters import Counters
from mikanet.paqet.options import load_setup
from mikanet.paqet.wire import Dialect
from tests.cli.test_doctor_machine import CLIENT, SERVER


class TableTests(SynchronousTestCase):
    """How findings are shown."""

    def test_table(self) -> None:
        """Aligned; long texts wrapped, commands never; problems counted."""
        out = StringIO()
        findings = [ok("a", "fine"), note("b", "hm " * 50), problem("c", "bad", "do this " * 30 + "\nand that")]
        self.assertEqual(show(iter(findings), out), 1)
        lines = out.getvalue().splitlines()
        self.assertEqual(lines[0], "  ok       a               fine")
        self.assertTrue(lines[2].startswith(" " * 27 + "hm"))
        self.assertEqual(lines[-3], "  PROBLEM  c               bad")
        self.assertEqual(lines[-2].strip(), ("do this " * 30).strip())
        self.assertEqual(lines[-1], " " * 29 + "and that")


class CommandTests(SynchronousTestCase):
    """The command line."""

    def options(self, *words: str) -> Options:
        """Parsed."""
        options = Options()
        options.parseOptions(list(words))
        return options

    def printed(self, *words: str) -> tuple[int, str]:
        """Status and output."""
        with mock.patch.object(sys, "stdout", StringIO()) as out:
            return run(self.options(*words)), out.getvalue()

    def test_mistakes(self) -> None:
        """One line each."""
        for words, part in (
            ([], "give the command line"),
            (["a", "b"], "give the command line"),
            (["tcp://host:1"], "URLs of dns://"),
            (["x", "--seconds", "no"], "--seconds takes a number"),
        ):
            with self.assertRaises(SystemExit) as caught:
                self.options(*words)
            self.assertIn(part, str(caught.exception.code))
            self.assertNotIn("\n", str(caught.exception.code))

    def test_options_behind(self) -> None:
        """The options may stand behind the file."""
        self.assertEqual(self.options("x.yaml", "--seconds", "3").seconds, 3.0)

    def test_url(self) -> None:
        """A URL's findings are those of its scheme's module."""
        module = ModuleType("checks")
        module.findings = lambda url, seconds: [("ok", "a", url, ""), ("PROBLEM", "b", "bad", "mend")]  # type: ignore[attr-defined]
        self.patch(doctor, "import_module", lambda name: module)
        status, text = self.printed("dns://192.0.2.53:53/t.example")
        self.assertEqual(status, 1)
        self.assertIn("  ok       a               dns://192.0.2.53:53/t.example\n", text)
        self.assertTrue(text.endswith("1 to fix, the first one first\n"))

    def test_file(self) -> None:
        """A file that cannot be used: readable by others, not YAML's keys, an easy key."""
        path = Path(self.mktemp())
        path.write_text(CLIENT)
        path.chmod(0o644)
        status, text = self.printed(str(path))
        self.assertEqual(status, 1)
        self.assertIn(f"  chmod 600 {path}\n", text)
        path.chmod(0o600)
        path.write_text(CLIENT + "nonsense: 1\n")
        (found,) = file_findings(self.options(str(path)))
        self.assertIn("line 8", found.text)
        path.write_text(CLIENT.replace("a secret of good length", "short"))
        (found,) = file_findings(self.options(str(path)))
        self.assertTrue(found.mend.startswith("mikanet genkey"))


class ExplainTests(SynchronousTestCase):
    """Why a server did not answer."""

    def setUp(self) -> None:
        """A client."""
        path = Path(self.mktemp())
        path.write_text(CLIENT.replace("198.51.100.1:9999", "127.0.0.1:9"))
        path.chmod(0o600)
        self.path = str(path)
        self.setup = load_setup(self.path, False)

    def test_reasons(self) -> None:
        """The dialect before the key before the kernel before the way."""
        counters = Counters()
        for refused, said, check, mend in (
            (0, [], "link", "mikanet doctor SERVER.yaml --seconds 30"),
            (0, ["the server x answers nothing"], "link", "mikanet doctor"),
            (3, [], "key", "the same key and block"),
            (
                3,
                ["the server x speaks dialect gob and not a21: write dialect: gob under mikanet:"],
                "dialect",
                f"dialect: gob   (under mikanet: in {self.path})",
            ),
            (
                0,
                ["the server x has the same key and does not take messages of dialect a21"],
                "dialect",
                "dialect: gob   ",
            ),
        ):
            (found,) = _explain(self.setup, counters, refused, said)
            self.assertEqual((found.status, found.check), (Status.PROBLEM, check))
            self.assertTrue(found.mend.startswith(mend), found.mend)
        counters.add("rawpackets.dropped.rst")
        (found,) = _explain(self.setup, counters, 0, [])
        self.assertIn("with RST", found.text)


class JudgeTests(SynchronousTestCase):
    """What a server's doctor makes of the packets that it saw."""

    def setUp(self) -> None:
        """A server."""
        path = Path(self.mktemp())
        path.write_text(SERVER)
        path.chmod(0o600)
        self.setup = load_setup(str(path), False)
        self.seen = _Seen(make_dissector(self.setup))

    def judge(self) -> dict[str, Status]:
        """Each check's status."""
        return {finding.check: finding.status for finding in _judge_packets(self.setup, self.seen)}

    def test_good(self) -> None:
        """Packets that are opened and answered."""
        self.seen.verdicts[True][Verdict.OPENED] = 5
        self.seen.verdicts[False][Verdict.OPENED] = 5
        self.assertEqual(self.judge(), {"packets": Status.OK})

    def test_no_answers(self) -> None:
        """Packets that are opened, and nothing goes back."""
        self.seen.verdicts[True][Verdict.OPENED] = 5
        self.assertEqual(self.judge(), {"packets": Status.PROBLEM})

    def test_keys(self) -> None:
        """Packets that are not opened: a problem if there are no others, else perhaps strangers'."""
        self.seen.verdicts[True][Verdict.LOCKED] = 3
        self.seen.locked_from["192.0.2.9"] = 3
        self.assertEqual(self.judge(), {"key": Status.PROBLEM})
        self.seen.verdicts[True][Verdict.OPENED] = 1
        self.seen.verdicts[False][Verdict.OPENED] = 1
        self.assertEqual(self.judge(), {"key": Status.NOTE, "packets": Status.OK})

    def test_kernel(self) -> None:
        """RSTs that this machine sent; those of clients' machines are none of its problems."""
        self.seen.verdicts[True][Verdict.RESET] = 3
        self.assertEqual(self.judge(), {})
        self.seen.verdicts[False][Verdict.RESET] = 3
        self.assertEqual(self.judge(), {"kernel": Status.PROBLEM})

    def test_damaged(self) -> None:
        """Wrong checksums are worth a note."""
        self.seen.verdicts[True][Verdict.MALFORMED] = 1
        self.assertEqual(self.judge(), {"packets": Status.NOTE})

    def test_dialect(self) -> None:
        """A dialect that the server does not take, with the line that lets it."""
        self.seen.dissector.seen_dialects = {Dialect.A20, Dialect.A21}
        (found,) = _judge_packets(self.setup, self.seen)
        self.assertEqual((found.status, found.check), (Status.PROBLEM, "dialect"))
        self.assertTrue(found.mend.startswith("dialect: [a20, a21, gob] "), found.mend)
