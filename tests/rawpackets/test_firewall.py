"""Firewall rules as texts; with a kernel they are in ``tests/interop/test_rawpackets_rules.py``."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mikanet.rawpackets import firewall as module
from mikanet.rawpackets.firewall import FirewallError, IptablesRules, NftRules, find_rules


class TextTests(SynchronousTestCase):
    """What the programs are told."""

    def test_nft(self) -> None:
        """One table, replaced whole, with the three rules."""
        script = NftRules.script(443)
        self.assertTrue(script.startswith("add table inet mikanet_paqet_443\ndelete table inet mikanet_paqet_443\n"))
        for rule in ("tcp dport 443 notrack", "tcp sport 443 notrack", "tcp sport 443 tcp flags & rst == rst drop"):
            self.assertIn(f"    {rule}\n", script)
        self.assertEqual(NftRules("/usr/sbin/nft").removal(443), "/usr/sbin/nft delete table inet mikanet_paqet_443")

    def test_iptables(self) -> None:
        """The same three, with the port's comment; what is removed is what was added."""
        rules = IptablesRules(["iptables", "ip6tables"])
        added = [" ".join(command) for command in rules._commands("-I", 443)]
        self.assertEqual(len(added), 6)
        self.assertEqual(added[0].replace("-I", "-D"), rules.removal(443).split("; ")[0])
        self.assertEqual(
            added[2],
            "iptables -w 5 -t mangle -I OUTPUT -p tcp --sport 443 --tcp-flags RST RST "
            "-m comment --comment mikanet_paqet_443 -j DROP",
        )

    def test_which_program(self) -> None:
        """nft first, then iptables; neither is an error that names what to install."""
        there: set[str] = {"nft", "iptables"}
        self.patch(module, "_program", lambda name: name if name in there else None)
        self.assertIsInstance(find_rules(), NftRules)
        there.discard("nft")
        self.assertIsInstance(find_rules(), IptablesRules)
        there.clear()
        with self.assertRaises(FirewallError) as caught:
            find_rules()
        self.assertIn("install nftables", str(caught.exception))

    def test_removal_that_hangs(self) -> None:
        """Is a FirewallError too."""
        self.patch(module, "_COMMAND_TIME", 0.05)
        rules = NftRules("nft")
        rules.removal = lambda port: "sleep 5"  # type: ignore[method-assign]
        with self.assertRaises(FirewallError):
            module._remove(rules, 443)

    def test_program_that_fails(self) -> None:
        """What it said, in one line."""
        with self.assertRaises(FirewallError) as caught:
            module._run(["sh", "-c", "printf 'one\\ntwo\\n' >&2; exit 3"])
        self.assertEqual(str(caught.exception), "sh says: one two")
