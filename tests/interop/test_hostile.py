"""One honest user beside forty hostile peers, in short; ``python -m tests.lab hostile --full`` takes every kind."""

from __future__ import annotations

import asyncio

from twisted.trial.unittest import SynchronousTestCase

from tests.lab.hostile import SHORT, SYSTEMS, run

#: Seconds beside each kind.
SECONDS = 2.0


class HostileTests(SynchronousTestCase):
    """His 99th percentile is within 200 ms of what it is alone, and nothing of his is lost."""

    def check(self, system: str) -> None:
        """Beside the kinds that cost most where nothing bounds them."""
        rows: list[str] = []
        faults = asyncio.run(run(system, SHORT[system], SECONDS, lambda row: rows.append(str(row))))
        self.assertEqual(faults, [], "\n".join(rows))

    def test_mika(self) -> None:
        """Mika, beside unread downloads and abandoned requests."""
        self.check("mika")

    def test_mika_over_kcp(self) -> None:
        """Mika over KCP, beside shards of ever other codes and sessions without their first segment."""
        self.check("mika-kcp")

    def test_pickaxe(self) -> None:
        """Pickaxe, beside small fragments and floods of logins under the user's own name."""
        self.check("pickaxe")

    def test_pickaxe_with_the_drafts_keys(self) -> None:
        """Pickaxe with keys as its draft has them, beside packets whose check takes a derivation."""
        self.check("pickaxe-draft")

    def test_pickaxe_over_http(self) -> None:
        """Pickaxe over HTTP, beside odd requests."""
        self.check("pickaxe-http")

    def test_nitrosocks(self) -> None:
        """NitroSocks, beside browsers' handshakes and names of a silent name server."""
        self.check("nitrosocks")

    def test_paqet(self) -> None:
        """paqet over UDP, beside forged packets and targets that never answer."""
        self.check("paqet")

    def test_megaki(self) -> None:
        """Megaki, beside sessions that resume without end and requests that are abandoned."""
        self.check("megaki")

    def test_every_system_is_there(self) -> None:
        """Whatever can be measured is measured here."""
        self.assertEqual(
            {name: set(SHORT[name]) - set(kinds) for name, kinds in SYSTEMS.items()}, {n: set() for n in SHORT}
        )
