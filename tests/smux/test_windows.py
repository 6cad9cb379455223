"""Windows of one session's streams."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.smux.windows import INITIAL_WINDOW, Window, WindowBank

TOTAL, MOST = 4 << 20, 2 << 20


class WindowBankTests(SynchronousTestCase):
    """One buffer for all."""

    @settings(deadline=None, max_examples=60)
    @given(
        st.integers(1, 64), st.lists(st.tuples(st.integers(0, 63), st.integers(0, 1 << 20), st.booleans()), max_size=80)
    )
    def test_sum_stays_within_the_buffer(self, streams: int, steps: list[tuple[int, int, bool]]) -> None:
        """Whatever is received, read and ended, what is announced and not yet read never exceeds the buffer."""
        bank = WindowBank(TOTAL, MOST, streams)
        windows: dict[int, Window] = {}
        for number, amount, end in steps:
            number %= streams
            if number not in windows:
                windows[number] = Window()
                bank.open(windows[number])
            window = windows[number]
            window.received = min(window.received + amount, window.announced)
            bank.consumed(window, min(amount, window.received - window.consumed))
            if end:
                bank.close(windows.pop(number))
            self.assertLessEqual(sum(each.committed for each in windows.values()), TOTAL)
            self.assertGreaterEqual(min([each.committed for each in windows.values()], default=0), 0)
        for window in windows.values():
            bank.close(window)
        self.assertEqual(bank._extra, 0)

    def test_lone_stream(self) -> None:
        """One stream alone has a quarter of the buffer, and the protocol's first window without a word."""
        bank, window = WindowBank(TOTAL, MOST, 1024), Window()
        self.assertIsNone(bank.open(window))
        self.assertEqual(window.announced, INITIAL_WINDOW)
        self.assertEqual(bank.consumed(window, 1), (2048 + (TOTAL - 1024 * 2048) // 2))
        self.assertIsNone(bank.consumed(window, 1000))

    def test_every_stream_has_something(self) -> None:
        """The last of the most streams gets a window, though none of the others is read."""
        bank = WindowBank(TOTAL, MOST, 1024)
        for _ in range(1024):
            window = Window()
            bank.open(window)
            window.received = window.announced
        self.assertGreaterEqual(window.announced, 2048)
