"""The state folder and its journal (X12, M3)."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import ConfigError
from mikanet.service import state
from mikanet.service.secret_files import write_private_file
from mikanet.service.state import Boot, StateFolder, default_state_dir

NOW = 1_700_000_000.5


def iv(number: int) -> bytes:
    """A 16-byte IV."""
    return struct.pack("!QQ", 7, number)


class StateFolderTests(SynchronousTestCase):
    """What survives a restart."""

    def setUp(self) -> None:
        """A base folder."""
        self.base = Path(self.mktemp())

    def folder(self, server: str = "mika-server tcp:8388") -> StateFolder:
        """The state of one server."""
        return StateFolder(self.base, server)

    def test_each_server_has_its_own(self) -> None:
        """Two listening addresses share nothing; the same one finds its folder again."""
        names = ("mika-server tcp:8388", "mika-server tcp:8389", "mika-server tcp.8388", "other-server tcp:8388")
        self.assertEqual(len({self.folder(name).path for name in names}), 4)
        self.assertEqual(self.folder().path, self.folder().path)

    def test_unwritable(self) -> None:
        """A folder that cannot be written is one clear line that names the option."""
        with self.assertRaises(ConfigError) as caught:
            StateFolder(Path("/proc/nowhere"), "x")
        self.assertIn("--state-dir", str(caught.exception))
        self.assertNotIn("\n", str(caught.exception))

    def test_default(self) -> None:
        """The user's state folder; without a user, the current folder."""
        for environment, expected in (
            ({"XDG_STATE_HOME": "/a", "HOME": "/h"}, "/a/mikanet"),
            ({"HOME": "/h"}, "/h/.local/state/mikanet"),
            ({}, "mikanet-state"),
        ):
            with mock.patch.dict(os.environ, environment, clear=True):
                self.assertEqual(str(default_state_dir()), expected)

    def test_refusal_time_is_drawn_once(self) -> None:
        """Between 60 and 90 s, and the same after every restart (X2)."""
        first = self.folder().refusal_time(lambda: 0.25)
        self.assertEqual(first, 67.5)
        self.assertEqual(self.folder().refusal_time(lambda: 0.9), first)
        (self.folder().path / "refusal-time").write_text("nonsense")
        self.assertEqual(self.folder().refusal_time(lambda: 0.5), 75.0)

    def test_replays_are_remembered_over_a_restart(self) -> None:
        """What one process accepted the next refuses, without any clean end in between (kill -9)."""
        replays, _ = self.folder().open_replays(NOW - 60)
        accepted = [(iv(number), int(NOW) + number % 60 - 30) for number in range(500)]
        self.assertTrue(all(replays.accept(*each, NOW) for each in accepted))
        again, _ = self.folder().open_replays(NOW + 1)
        self.assertFalse(any(again.accept(*each, NOW + 1) for each in accepted))
        self.assertTrue(again.accept(iv(9999), int(NOW), NOW + 1))

    def test_a_new_server(self) -> None:
        """Where no server has run before, ids of this second and later are taken: nobody waits (M3)."""
        replays, _ = self.folder().open_replays(NOW)
        self.assertFalse(replays.accept(iv(1), int(NOW) - 1, NOW))
        self.assertTrue(replays.accept(iv(2), int(NOW), NOW))

    def damaged(self, change: Callable[[Path], object], boot: Boot | None = None) -> list[bool]:
        """What a server takes again of six headers, -25 to 25 s off, after its journal was changed."""
        self.base = Path(self.mktemp())
        offsets = (-25, -15, -5, 5, 15, 25)
        replays, _ = self.folder().open_replays(NOW - 60)
        for offset in offsets:
            self.assertTrue(replays.accept(iv(offset & 0xFF), int(NOW) + offset, NOW))
        change(self.folder().path / "replay.journal")
        again, _ = self.folder().open_replays(NOW + 0.2, boot=boot)
        taken = [again.accept(iv(offset & 0xFF), int(NOW) + offset, NOW + 0.2) for offset in offsets]
        # Whatever was refused, half a minute later everybody is let in.
        self.assertTrue(again.accept(iv(99), int(NOW) + 31, NOW + 31))
        return taken

    def test_damaged_journals(self) -> None:
        """Emptied, gone, cut, grown, shifted, of an older version or random: nothing of before is taken again."""
        changes: dict[str, Callable[[Path], object]] = {
            "emptied": lambda path: path.write_bytes(b""),
            "gone": lambda path: path.unlink(),
            "half a header": lambda path: path.write_bytes(path.read_bytes()[:20]),
            "cut within an entry": lambda path: path.write_bytes(path.read_bytes()[:-5]),
            "grown": lambda path: path.write_bytes(path.read_bytes() + b"torn"),
            "shifted": lambda path: path.write_bytes(b"\0" + path.read_bytes()),
            "without a header": lambda path: path.write_bytes(path.read_bytes()[32:]),
            "random": lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
        }
        for name, change in changes.items():
            self.assertEqual(self.damaged(change), [False] * 6, name)

    def test_another_boot(self) -> None:
        """When the machine went down in between, its last moments are not trusted, and nobody waits long after that."""
        nothing = lambda path: path.write_bytes(path.read_bytes()[:32])  # noqa: E731  # what a crash may leave
        self.assertEqual(self.damaged(nothing, Boot(b"b" * 16, NOW + 0.1)), [False] * 6)
        taken = self.damaged(nothing, Boot(b"b" * 16, NOW - 40))
        self.assertEqual(taken, [False, False, True, True, True, True])
        self.assertEqual(self.damaged(lambda path: None), [False] * 6)

    def test_this_boot(self) -> None:
        """The kernel has a number of this start, which stays, and a time of it that has passed."""
        first, second = Boot.of_this_machine(NOW), Boot.of_this_machine(NOW)
        self.assertEqual((first.ident, len(first.ident)), (second.ident, 16))
        self.assertLess(first.time, NOW)

    def test_others_files(self) -> None:
        """A link, a folder that others may write to, and a lock that cannot be opened are refused in one line."""
        folder = self.folder()
        folder.open_replays(NOW)
        journal = folder.path / "replay.journal"
        target = self.base / "elsewhere"
        target.write_bytes(journal.read_bytes())
        journal.unlink()
        journal.symlink_to(target.resolve())
        with self.assertRaisesRegex(ConfigError, "cannot use"):
            self.folder().open_replays(NOW)
        journal.unlink()
        folder.path.chmod(0o777)
        with self.assertRaisesRegex(ConfigError, "others may write there"):
            self.folder()
        folder.path.chmod(0o700)
        (folder.path / "lock").symlink_to(target.resolve())
        with self.assertRaisesRegex(ConfigError, "remove it, or give another folder"):
            self.folder().lock()

    def test_links_are_not_followed(self) -> None:
        """A file is replaced, never written through a link; what a killed process left is removed."""
        folder = self.folder()
        victim = self.base / "victim"
        victim.write_bytes(b"precious")
        (folder.path / "replay.journal").symlink_to(victim.resolve())
        with self.assertRaises(ConfigError):
            folder.open_replays(NOW)
        write_private_file(folder.path / "replay.journal", b"new")
        self.assertEqual(victim.read_bytes(), b"precious")
        self.assertFalse((folder.path / "replay.journal").is_symlink())
        (folder.path / ".replay.journal.0123.new").write_bytes(b"left")
        folder.lock()
        self.assertEqual(list(folder.path.glob(".*")), [])

    def test_short_write_is_taken_back(self) -> None:
        """When the disk takes half an entry, the connection is refused and the journal stays readable."""
        replays, _ = self.folder().open_replays(NOW)
        replays.accept(iv(1), int(NOW), NOW)
        real = os.write
        with mock.patch("mikanet.service.state.os.write", lambda fd, data: real(fd, data[:9])):
            self.assertFalse(replays.accept(iv(2), int(NOW), NOW))
        self.assertTrue(replays.accept(iv(3), int(NOW), NOW))
        again, _ = self.folder().open_replays(NOW)
        self.assertFalse(again.accept(iv(1), int(NOW), NOW))
        self.assertFalse(again.accept(iv(3), int(NOW), NOW))
        self.assertTrue(again.accept(iv(2), int(NOW), NOW))

    def test_closed_journal_refuses(self) -> None:
        """Nothing is accepted that is not written down."""
        replays, journal = self.folder().open_replays(NOW)
        journal.close()
        self.assertFalse(replays.accept(iv(1), int(NOW), NOW))

    def test_journal_is_compacted(self) -> None:
        """A long-running server's journal does not grow for ever, and nothing in time is lost."""
        self.patch(state, "_COMPACT_AT", 50)
        replays, _ = self.folder().open_replays(NOW)
        for second in range(300):
            self.assertTrue(replays.accept(iv(second), int(NOW) + second, NOW + second))
        size = (self.folder().path / "replay.journal").stat().st_size
        self.assertLess(size, 24 * 130)
        again, _ = self.folder().open_replays(NOW + 299)
        for second in range(269, 300):
            self.assertFalse(again.accept(iv(second), int(NOW) + second, NOW + 299))

    def test_a_journal_that_cannot_be_rewritten_goes_on(self) -> None:
        """After privileges were dropped the folder may be closed to us; the open file still takes entries."""
        self.patch(state, "_COMPACT_AT", 50)
        replays, _ = self.folder().open_replays(NOW)
        with mock.patch("mikanet.service.state.write_private_file", side_effect=PermissionError):
            for second in range(300):
                self.assertTrue(replays.accept(iv(second), int(NOW) + second, NOW + second))
        again, _ = self.folder().open_replays(NOW + 299)
        self.assertFalse(again.accept(iv(299), int(NOW) + 299, NOW + 299))

    def test_a_full_disk_is_told(self) -> None:
        """When nothing can be written everybody is refused, and the log says why, once."""
        replays, _ = self.folder().open_replays(NOW)
        with mock.patch("mikanet.service.state.os.write", side_effect=OSError(28, "No space left on device")):
            for number in range(5):
                self.assertFalse(replays.accept(iv(number), int(NOW), NOW))
        self.assertTrue(replays.accept(iv(9), int(NOW), NOW))

    def test_another_process_is_kept_out(self) -> None:
        """While one server has the folder no other process gets it; this one may ask again."""
        folder = self.folder()
        folder.lock()
        folder.lock()
        code = (
            "import sys; from pathlib import Path; from mikanet.service.state import StateFolder; "
            "StateFolder(Path(sys.argv[1]), 'mika-server tcp:8388').lock()"
        )
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(
            [sys.executable, "-c", code, str(self.base.resolve())],
            capture_output=True,
            text=True,
            cwd=root,
            check=False,
        )
        self.assertEqual(done.returncode, 1)
        self.assertIn("ConfigError: the state folder", done.stderr)

    def test_files_are_private(self) -> None:
        """Folder and journal are the owner's alone."""
        folder = self.folder()
        folder.open_replays(NOW)
        self.assertEqual(folder.path.stat().st_mode & 0o077, 0)
        self.assertEqual((folder.path / "replay.journal").stat().st_mode & 0o077, 0)
