"""Tests of mikanet.crypto.totp against RFC 6238's own values."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mikanet.crypto.totp import step_of, totp

#: RFC 6238 appendix B: Unix time, and the passwords by SHA-1, SHA-256 and SHA-512.
APPENDIX_B = (
    (59, "94287082", "46119246", "90693936"),
    (1111111109, "07081804", "68084774", "25091201"),
    (1111111111, "14050471", "67062674", "99943326"),
    (1234567890, "89005924", "91819424", "93441116"),
    (2000000000, "69279037", "90698825", "38618901"),
    (20000000000, "65353130", "77737706", "47863826"),
)

#: The appendix's program takes a seed of its own length for each hash, which its text does not say.
SEEDS = {name: (b"1234567890" * 7)[:size] for name, size in (("sha1", 20), ("sha256", 32), ("sha512", 64))}


class TotpTests(SynchronousTestCase):
    """One-time passwords."""

    def test_appendix_b(self) -> None:
        """Every value of the RFC's table, for each of its three hashes."""
        for moment, *passwords in APPENDIX_B:
            for (digest, seed), expected in zip(SEEDS.items(), passwords, strict=True):
                self.assertEqual(totp(seed, step_of(moment), 8, digest), expected, (moment, digest))

    def test_steps(self) -> None:
        """A step begins every 30 seconds from Unix time 0 on."""
        self.assertEqual([step_of(moment) for moment in (0, 29.99, 30, 59.9, 60)], [0, 0, 1, 1, 2])

    def test_digits(self) -> None:
        """A password has as many digits as are asked for, with zeros in front."""
        for digits in (6, 7, 8):
            password = totp(SEEDS["sha1"], step_of(1111111109), digits, "sha1")
            self.assertEqual(password, "07081804"[-digits:])
