"""How many questions of a polled link are on the way: the rate at which answers come, times the way's delay. No I/O.

Loss alone says little on the paths that these links are for, so it is not what the window follows: the rate of answers is
(as in BBR). Twice the product of the best rate and the least delay may be on the way, so a shared link keeps a queue of
at most one product from us, and questions are paced by that rate. Now and then they leave slower than answers came: what
is lost even then is lost at any rate, and made up for by asking more. A path that passes so many questions per second
and no more loses none then, and is not asked more. An answer that says "too many" (REFUSED, SERVFAIL) shrinks the window.
"""

from __future__ import annotations

MIN_WINDOW, FIRST_WINDOW, MAX_WINDOW = 4, 16, 512
#: Delays below this are taken for it, in seconds: machines answer in batches.
LEAST_DELAY = 0.01
#: Twice the product may be on the way.
_GAIN = 2.0
#: How fast questions leave against how fast answers came, one interval after the other.
_PACE_GAINS = (1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
#: An interval of measurement has so many answers, and at least so many seconds.
_INTERVAL_ANSWERS, _LEAST_INTERVAL = 10, 0.02
#: So many questions per second, or two in a round trip if that is less, are no flood on any path.
_LEAST_RATE = 10.0
#: A least delay is believed for so many seconds.
_DELAY_MEMORY = 10.0
#: More loss than this is not made up for.
_MOST_LOSS = 0.75


class Stamp:
    """A question on its way."""

    __slots__ = ("limited", "number", "sent_at")

    def __init__(self, number: int, now: float, limited: bool) -> None:
        self.number = number
        self.sent_at = now
        self.limited = limited


class Pace:
    """The congestion control of a link's client.

    :ivar window: questions that may be on the way besides those that the server keeps. :ivar rate: answers per second
        at best, 0 before it is known. :ivar delay: the least round-trip time, in seconds. :ivar loss: the share of
        questions that is lost at any rate.
    """

    def __init__(self) -> None:
        self.window = FIRST_WINDOW
        self.rate = 0.0
        self.delay = 0.0
        self.loss = 0.0
        self._starting = True
        # Two generations of best rates and least losses, each of one cycle of _PACE_GAINS, and of least delays.
        self._rates = [0.0, 0.0]
        self._losses = [0.0, 1.0]
        self._delays = [0.0, 0.0]
        self._delays_since = 0.0
        self._phase = 0
        # The interval that is being measured.
        self._since = 0.0
        self._answers = 0
        self._lost = 0
        self._limited = True
        self._plateau = 0.0
        self._flat = 0
        self._ceiling = float(MAX_WINDOW)
        self._ceiling_at = 0.0
        self._credit = 0.0
        self._credit_at = 0.0

    # -- sending

    def ready_at(self, now: float) -> float:
        """When the next question may leave: ``now``, or later."""
        if self._starting:
            return now
        gain = _PACE_GAINS[self._phase]
        rate = self.rate * gain if gain < 1 else self.rate * gain / (1 - self.loss)
        rate = max(rate, min(_LEAST_RATE, 2 / max(self.delay, LEAST_DELAY)))
        burst = max(2.0, rate * LEAST_DELAY)
        self._credit = min(burst, self._credit + (now - self._credit_at) * rate)
        self._credit_at = now
        return now if self._credit > 1 - 1e-6 else now + (1 - self._credit) / rate

    def sent(self, number: int, now: float, on_way: int, paced: bool) -> Stamp:
        """A question leaves while ``on_way`` others are on the way. :param paced: it had to wait for its time."""
        self._credit -= 1
        return Stamp(number, now, not paced and on_way < self.window // 2)

    # -- hearing

    def answered(self, stamp: Stamp, at_once: bool, now: float) -> None:
        """An answer came. :param at_once: the server did not hold the question."""
        self._answers += 1
        if not stamp.limited:
            self._limited = False
            if self._starting:
                self.window = min(MAX_WINDOW, int(self._ceiling), self.window + 1)
        if at_once:
            self._note_delay(now - stamp.sent_at, now)
            if self._ceiling < MAX_WINDOW:
                self._ceiling += 1 / self._ceiling
        elapsed = now - self._since
        if elapsed >= max(_LEAST_INTERVAL, self.delay) and (
            self._answers >= _INTERVAL_ANSWERS or elapsed >= max(1.0, 2 * self.delay)
        ):
            self._end_interval(elapsed, now)

    def lost(self, count: int) -> None:
        """So many questions were lost; negative if some came back after all."""
        self._lost += count

    def refused(self, now: float) -> None:
        """Somebody on the path says that this is too much."""
        if now - self._ceiling_at > max(self.delay, 0.1):
            self._ceiling_at = now
            self._ceiling = max(MIN_WINDOW, min(self.window, self._ceiling) * 0.7)
            self.window = min(self.window, int(self._ceiling))

    def silence(self) -> None:
        """All that was on the way is lost: go on with little."""
        self.window = MIN_WINDOW
        self._rates = [max(self._rates) / 2, 0.0]
        self.rate = self._rates[0]
        if not self.rate:
            self._starting = True
            self._plateau = 0.0
            self._flat = 0

    # -- estimates

    def _note_delay(self, elapsed: float, now: float) -> None:
        old, new = self._delays
        if not new or elapsed < new:
            new = elapsed
        if now - self._delays_since > _DELAY_MEMORY:
            old, new, self._delays_since = new, elapsed, now
        self._delays = [old, new]
        self.delay = min(old, new) if old else new

    def _end_interval(self, elapsed: float, now: float) -> None:
        rate = self._answers / elapsed
        if not self._limited or rate > self.rate:
            lost = max(0, self._lost)
            self._note_interval(rate, min(_MOST_LOSS, lost / (lost + self._answers)))
        self._since = now
        self._answers = self._lost = 0
        self._limited = True

    def _note_interval(self, rate: float, loss: float) -> None:
        self._rates[1] = max(self._rates[1], rate)
        self._losses[1] = min(self._losses[1], loss)
        self.rate = max(self._rates)
        if self._starting:
            self._note_plateau()
            return
        self._phase = (self._phase + 1) % len(_PACE_GAINS)
        if not self._phase:
            self.loss = self._losses[1]
            self._rates = [self._rates[1], 0.0]
            self._losses = [self._losses[1], 1.0]
        product = self.rate * max(self.delay, LEAST_DELAY) / (1 - self.loss)
        self.window = max(MIN_WINDOW, min(MAX_WINDOW, int(self._ceiling), int(_GAIN * product) + 1))

    def _note_plateau(self) -> None:
        """The window grows with each answer until the rate does not follow."""
        if self.rate > self._plateau * 1.25:
            self._plateau = self.rate
            self._flat = 0
            return
        self._flat += 1
        if self._flat >= 3:
            self._starting = False
            self._phase = 0
            self.loss = self._losses[1]
