"""The token bank."""

from __future__ import annotations

import random
from collections import Counter

from twisted.trial.unittest import SynchronousTestCase

from mikanet.megaki import bank
from mikanet.megaki.bank import MARK_COST, Session, TokenBank
from mikanet.megaki.sealing import SessionKey
from mikanet.megaki.wire import Kind
from mikanet.relay import MemoryBudget


class BankTests(SynchronousTestCase):
    """Places, and who loses them (K3)."""

    def setUp(self) -> None:
        """A small bank."""
        self.bank = TokenBank(capacity=16, idle_life=100.0)
        self.number = 0

    def add(self, group: str = "a") -> Session | None:
        """A new session with a connection."""
        self.number += 1
        return self.bank.add(self.number.to_bytes(16), SessionKey(self.number.to_bytes(32)), group)

    def fill(self, now: float = 0.0, live: bool = False) -> list[Session]:
        """As many sessions as there is room for, of many groups."""
        sessions = []
        for number in range(16):
            session = self.add(f"group {number}")
            assert session is not None
            sessions.append(session)
            if not live:
                self.bank.detach(session, now)
        return sessions

    def test_found_until_too_old(self) -> None:
        """A session is found while it has a connection, and for its idle life afterwards."""
        session = self.add()
        assert session is not None
        self.assertIs(self.bank.find(session.token, 1e9), session)
        self.bank.detach(session, 1000.0)
        self.assertIs(self.bank.find(session.token, 1100.0), session)
        self.assertIsNone(self.bank.find(session.token, 1100.1))
        self.assertEqual(len(self.bank), 0)

    def test_the_longest_idle_goes_first(self) -> None:
        """A full bank gives up the session that has been idle for longest, whatever order they came in."""
        sessions = self.fill()
        self.bank.attach(sessions[0])
        self.bank.detach(sessions[0], 5.0)
        self.assertIsNotNone(self.add("new"))
        self.assertNotIn(sessions[1].token, self.bank)
        self.assertIn(sessions[0].token, self.bank)

    def test_never_one_with_a_connection(self) -> None:
        """If every session has a connection there is no room, and nothing is lost."""
        sessions = self.fill(live=True)
        self.assertFalse(self.bank.has_room("new"))
        self.assertIsNone(self.add("new"))
        self.assertTrue(all(session.token in self.bank for session in sessions))
        self.bank.detach(sessions[3], 0.0)
        self.assertTrue(self.bank.has_room("new"))
        self.assertIsNotNone(self.add("new"))
        self.assertNotIn(sessions[3].token, self.bank)

    def test_share_of_a_group(self) -> None:
        """One group of addresses gets an eighth of the places; beyond that it pays with its own."""
        other = self.add("other")
        assert other is not None
        self.bank.detach(other, 0.0)
        first, second = self.add("flood"), self.add("flood")
        assert first is not None
        assert second is not None
        self.assertFalse(self.bank.has_room("flood"))
        self.assertIsNone(self.add("flood"))
        self.bank.detach(second, 1.0)
        self.bank.detach(first, 2.0)
        self.assertIsNotNone(self.add("flood"))
        self.assertNotIn(second.token, self.bank)
        self.assertIn(other.token, self.bank)

    def test_two_connections(self) -> None:
        """A session is idle when the last of its connections ends."""
        session = self.add()
        assert session is not None
        self.bank.attach(session)
        session.current.tag(b"")
        self.bank.detach(session, 0.0)
        self.assertIsNotNone(session.current._tag)
        self.assertIs(self.bank.find(session.token, 500.0), session)
        self.bank.detach(session, 500.0)
        self.assertIsNone(session.current._tag)  # its key keeps nothing that can be made again
        self.assertIsNone(self.bank.find(session.token, 601.0))

    def test_memory_of_idle_sessions(self) -> None:
        """The remembered MACs of idle sessions are bounded over all of them."""
        self.patch(bank, "MAX_IDLE_MARKS", 10)
        sessions = self.fill(live=True)
        for session in sessions[:4]:
            for _ in range(4):
                session.current.seal(Kind.MSG, session.token, b"x", random.randbytes)
            self.bank.detach(session, 0.0)
        self.assertNotIn(sessions[0].token, self.bank)
        self.assertNotIn(sessions[1].token, self.bank)
        self.assertIn(sessions[3].token, self.bank)

    def test_heavy_group_pays_for_itself(self) -> None:
        """When places or memory run out, the group with most idle sessions, or most of their marks, gives up its own."""
        self.bank = TokenBank(capacity=64, idle_life=100.0)
        quiet = [self.add(f"quiet {number}") for number in range(57)]
        noisy = [self.add("noisy") for _ in range(7)]
        for session in (*quiet, *noisy):
            assert session is not None
            self.bank.detach(session, 0.0)
        for number in range(6):
            fresh = self.add(f"fresh {number}")
            assert fresh is not None
            self.bank.detach(fresh, 1.0)
        lost = [each for each in quiet if each is not None and each.token not in self.bank]
        self.assertEqual(lost, [])
        self.bank = TokenBank(capacity=64)
        self.patch(bank, "MAX_IDLE_MARKS", 100)
        for group, count in (("light", 5), ("heavy", 60), ("light", 5), ("heavy", 60)):
            session = self.add(group)
            assert session is not None
            for _ in range(count):
                session.current.seal(Kind.MSG, session.token, b"x", random.randbytes)
            self.bank.detach(session, 2.0)
        self.assertEqual(self.bank._marks_of, {"light": 10, "heavy": 60})

    def test_marks_in_the_budget(self) -> None:
        """Marks of sessions without a connection count in the budget, and get half of it at most."""
        budget = MemoryBudget(100 * MARK_COST)
        self.bank.use_budget(budget)
        sessions = self.fill(live=True)
        for session in sessions:
            for _ in range(10):
                session.current.seal(Kind.MSG, session.token, b"x", random.randbytes)
        for number, session in enumerate(sessions, 1):
            self.bank.detach(session, 0.0)
            self.assertEqual(budget.used, min(50, 10 * number) * MARK_COST)
        self.bank.attach(sessions[-1])
        self.assertEqual(budget.used, 40 * MARK_COST)
        self.bank.detach(sessions[-1], 0.0)
        self.bank.expire(101.0)
        self.assertEqual((budget.used, len(self.bank)), (0, 0))

    def test_random_walk(self) -> None:
        """Whatever happens, the books agree: never over capacity, no share exceeded, no live session lost."""
        rng = random.Random(11)
        live: list[Session] = []
        idle: list[Session] = []
        now = 0.0
        for _ in range(5000):
            now += rng.random() * 3
            what = rng.randrange(4)
            if what == 0:
                session = self.add(rng.choice("abcdefgh"))
                if session is not None:
                    live.append(session)
            elif what == 1 and live:
                session = live.pop(rng.randrange(len(live)))
                self.bank.detach(session, now)
                idle.append(session)
            elif what == 2 and idle:
                session = idle.pop(rng.randrange(len(idle)))
                if self.bank.find(session.token, now) is session:
                    self.bank.attach(session)
                    live.append(session)
            else:
                self.bank.expire(now)
            self.assertLessEqual(len(self.bank), 16)
            counted = Counter(session.group for session in self.bank._idle.values())
            self.assertEqual({group: self.bank._idle_groups[group] for group in counted}, dict(counted))
            self.assertTrue(all(session.token in self.bank for session in live))
