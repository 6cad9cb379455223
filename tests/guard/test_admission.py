"""Admission: who may come in (X3)."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mikanet.guard.admission import Admission, AdmissionLimits, address_group


def never() -> float:
    """A random number that drops nobody early."""
    return 0.999999


class UnverifiedTests(SynchronousTestCase):
    """Connections that have not proved anything."""

    def fill(self, admission: Admission, count: int, host: str = "", now: float = 0.0) -> int:
        """How many of ``count`` new connections come in; each from its own address unless ``host`` is given."""
        return sum(
            admission.admit((host, index, now), host or f"10.{index >> 8 & 255}.{index & 255}.1", now)
            for index in range(count)
        )

    def test_young_ones_are_not_counted(self) -> None:
        """A burst of connections younger than two seconds is let in whole."""
        admission = Admission(AdmissionLimits(unverified=100), never)
        self.assertEqual(self.fill(admission, 5000), 5000)
        self.assertEqual(admission.unverified, 0)

    def test_full_stops_everybody(self) -> None:
        """At the cap every further one is dropped, until some leave."""
        admission = Admission(AdmissionLimits(unverified=100), never)
        self.fill(admission, 100)
        self.assertFalse(admission.admit("late", "192.0.2.1", 2.1))
        self.assertEqual(admission.unverified, 100)
        for index in range(100):
            admission.leave(("", index, 0.0))
        self.assertTrue(admission.admit("later", "192.0.2.1", 2.2))

    def test_random_early_drop(self) -> None:
        """Between a tenth of the cap and the cap the chance to be dropped rises from 30 to 100 per cent."""
        for held, chance in ((99, 0.0), (100, 0.3), (550, 0.65), (999, 0.999)):
            for roll, admitted in ((chance - 0.01, False), (chance + 0.01, True)):
                if not 0 <= roll < 1:
                    continue
                admission = Admission(AdmissionLimits(unverified=1000), lambda roll=roll: roll)
                self.fill(admission, held)
                self.assertEqual(admission.admit("new", "192.0.2.1", 3.0), admitted, (held, roll))

    def test_cap_per_address(self) -> None:
        """One address cannot have more than its share; others are not hindered."""
        admission = Admission(AdmissionLimits(unverified_per_address=4), never)
        self.fill(admission, 4, "192.0.2.1")
        self.assertFalse(admission.admit("fifth", "192.0.2.1", 2.5))
        self.assertTrue(admission.admit("other", "192.0.2.2", 2.5))

    def test_an_ipv6_network_is_one_address(self) -> None:
        """All of a /64 counts as one; a mapped IPv4 address counts as itself."""
        self.assertEqual(address_group("2001:db8::1"), address_group("2001:db8::ffff:1"))
        self.assertNotEqual(address_group("2001:db8::1"), address_group("2001:db8:0:1::1"))
        self.assertEqual(address_group("::ffff:192.0.2.1"), address_group("192.0.2.1"))
        self.assertEqual(address_group("fe80::1%eth0"), address_group("fe80::2"))

    def test_a_verified_household_is_not_locked_out(self) -> None:
        """Ten minutes after a good proof the address may exceed its share; later it may not."""
        admission = Admission(AdmissionLimits(unverified_per_address=4), never)
        admission.admit("good", "192.0.2.1", 0.0)
        self.assertTrue(admission.verify("good", "192.0.2.1", 0.0))
        self.fill(admission, 4, "192.0.2.1")
        self.assertTrue(admission.admit("fifth", "192.0.2.1", 600.0))
        self.assertFalse(admission.admit("sixth", "192.0.2.1", 600.1))

    def test_a_flood_of_strangers_spares_known_addresses(self) -> None:
        """Random early drop does not meet an address that proved itself lately; the full cap does."""
        admission = Admission(AdmissionLimits(unverified=1000), lambda: 0.0)
        admission.admit("good", "192.0.2.1", 0.0)
        admission.verify("good", "192.0.2.1", 0.0)
        admitted = sum(
            admission.admit(("stranger", index), f"10.{index >> 8}.{index & 255}.1", 10.0) for index in range(999)
        )
        self.assertEqual(admitted, 999)
        self.assertFalse(admission.admit("another stranger", "192.0.2.2", 13.0))
        self.assertTrue(admission.admit("a friend", "192.0.2.1", 13.0))
        self.assertFalse(admission.admit("a friend later", "192.0.2.1", 700.0))

    def test_leaving_is_counted_once(self) -> None:
        """A connection that leaves twice, or was never there, changes nothing."""
        admission = Admission(AdmissionLimits(unverified_per_address=1), never)
        self.fill(admission, 1, "192.0.2.1")
        admission.admit("x", "192.0.2.9", 3.0)
        for _ in range(2):
            admission.leave(("192.0.2.1", 0, 0.0))
        admission.leave("nobody")
        self.assertEqual(admission.unverified, 0)
        self.assertTrue(admission.admit("y", "192.0.2.1", 3.0))


class VerifiedTests(SynchronousTestCase):
    """Connections that have proved themselves."""

    def test_caps(self) -> None:
        """There is a cap for all and one for each user; who leaves makes room."""
        admission = Admission(AdmissionLimits(connections=3, per_user=2))
        verdicts = [admission.verify(index, "192.0.2.1", 0.0, user) for index, user in enumerate("aaabb")]
        self.assertEqual(verdicts, [True, True, False, True, False])
        self.assertEqual(admission.verified, 3)
        admission.leave_verified("a")
        self.assertTrue(admission.verify(9, "192.0.2.1", 0.0, "b"))
