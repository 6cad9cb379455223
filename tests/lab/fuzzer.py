"""The fuzzer: seeded mutations of golden inputs into codecs, with bounds on time and memory.

A codec is fine as long as nothing but :class:`~mikanet.errors.ProtocolError` leaves it, no input takes long or much
memory, and a stream codec comes to the same end however its bytes are cut. An input that shows otherwise is kept under
``tests/lab/corpus/<codec>/`` and runs in every test run from then on.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import random
import resource
import signal
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from mikanet.errors import ProtocolError
from tests.support.feeding import mutations, random_pieces

CORPUS = Path(__file__).parent / "corpus"

#: Seconds that one input may take, at best of three tries (our choice: a thousand times the usual).
MAX_SECONDS = 0.1
#: Seconds after which an input counts as hanging.
HANG_SECONDS = 10
#: Bytes that one input may make a codec allocate at a time, beside 100 for each of its own (our choice).
MAX_MEMORY = 2_000_000
#: Memory is measured, and streams are cut, for one input in so many: both are slow.
_SAMPLE = 64
_BATCH = 256

#: What a codec's run function gets: the input in pieces (one piece for a packet codec).
Run = Callable[[Sequence[bytes]], Any]


@dataclasses.dataclass(frozen=True)
class Codec:
    """One thing to be fuzzed.

    :ivar golden: good inputs, from which the mutations are made.
    :ivar run: feeds a new codec with the pieces of an input; its answer is compared between cuts of the same input.
    :ivar stream: whether an input may come in pieces.
    """

    name: str
    golden: Callable[[], Sequence[bytes]]
    run: Run
    stream: bool = True

    def inputs(self) -> list[bytes]:
        """The golden inputs and those of the corpus."""
        return [*self.golden(), *(path.read_bytes() for path in self.corpus())]

    def corpus(self) -> list[Path]:
        """Files with inputs that once were a fault."""
        return sorted((CORPUS / self.name).glob("*.bin"))


class FaultError(Exception):
    """An input that a codec does not take as it should. The text says what happened."""


class _Hang(BaseException):
    """Raised by the alarm; no codec catches it."""


def check(codec: Codec, data: bytes, rng: random.Random | None = None) -> str:
    """Run one input; the verdict: ``ok`` or the name of the error that refused it.

    :param rng: if given, the input is also cut in pieces and its memory is measured.
    :raises FaultError: if the codec does what no input may make it do.
    """
    started = time.perf_counter()
    verdict, answer = _run(codec, _whole(data))
    if (
        time.perf_counter() - started > MAX_SECONDS
        and (best := min(_time(codec, data) for _ in range(3))) > MAX_SECONDS
    ):
        raise FaultError(f"took {best:.3f} s, more than {MAX_SECONDS} s")
    if rng is not None:
        _check_memory(codec, data)
        if codec.stream:
            _check_pieces(codec, data, verdict, answer, rng)
    return verdict


def _run(codec: Codec, pieces: Sequence[bytes]) -> tuple[str, Any]:
    try:
        return "ok", codec.run(pieces)
    except ProtocolError as error:
        return type(error).__name__, None
    except Exception as error:  # everything else is what we look for
        raise FaultError(f"{type(error).__name__}: {error}") from error


def _whole(data: bytes) -> list[bytes]:
    # Nothing is no piece: a transport never delivers it, and some parsers take it for the end.
    return [data] if data else []


def _time(codec: Codec, data: bytes) -> float:
    started = time.perf_counter()
    _run(codec, _whole(data))
    return time.perf_counter() - started


def _check_memory(codec: Codec, data: bytes) -> None:
    limit = MAX_MEMORY + 100 * len(data)
    tracemalloc.start(1)
    try:
        _run(codec, _whole(data))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if most > limit:
        raise FaultError(f"took {most} bytes of memory, more than {limit}")


def _check_pieces(codec: Codec, data: bytes, verdict: str, answer: Any, rng: random.Random) -> None:
    """Two cuts of one input end in the same way; what was delivered before a refusal may differ."""
    for pieces in (random_pieces(data, rng), [data[i : i + 1] for i in range(len(data))]):
        again, answer_again = _run(codec, pieces)
        if (again == "ok") != (verdict == "ok"):
            raise FaultError(f"whole: {verdict}, in {len(pieces)} pieces: {again}")
        if verdict == "ok" and answer_again != answer:
            raise FaultError(
                f"in {len(pieces)} pieces the answer is another: {answer_again!r:.80}, whole: {answer!r:.80}"
            )


@dataclasses.dataclass
class Outcome:
    """What a run over one codec found.

    :ivar inputs: how many were run. :ivar verdicts: how often each came. :ivar faults: texts, with the input.
    """

    name: str
    inputs: int = 0
    seconds: float = 0.0
    verdicts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    faults: list[tuple[str, bytes]] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        rate = self.inputs / self.seconds if self.seconds else 0
        kinds = ", ".join(f"{name} {count}" for name, count in self.verdicts.most_common(4))
        return f"{self.name:28} {self.inputs:>9} inputs {rate:>9.0f}/s  faults {len(self.faults)}  ({kinds})"


def fuzz(
    codec: Codec,
    inputs: int,
    seed: object,
    *,
    most_faults: int = 5,
    tick: Callable[[int], object] | None = None,
) -> Outcome:
    """Run ``inputs`` seeded mutations, after the golden inputs and the corpus themselves.

    :param tick: called now and then with how many have been run since the last call.
    """
    rng = random.Random(f"{seed}/{codec.name}/pieces")
    outcome = Outcome(codec.name)
    golden = codec.inputs()
    stream = _seeded(golden, inputs, f"{seed}/{codec.name}")
    started = time.perf_counter()
    current = b""
    with _alarm():
        while len(outcome.faults) < most_faults:
            batch = [data for _, data in zip(range(_BATCH), stream, strict=False)]
            if not batch:
                break
            signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
            for current in batch:
                outcome.inputs += 1
                try:
                    outcome.verdicts[check(codec, current, rng if outcome.inputs % _SAMPLE == 0 else None)] += 1
                except FaultError as fault:
                    outcome.faults.append((str(fault), current))
                    if len(outcome.faults) >= most_faults:
                        break
                except _Hang:
                    outcome.faults.append((f"no end after {HANG_SECONDS} s", current))
                    break
            signal.setitimer(signal.ITIMER_REAL, 0)
            if tick is not None:
                tick(len(batch))
    outcome.seconds = time.perf_counter() - started
    return outcome


def _seeded(golden: Sequence[bytes], count: int, seed: str) -> Iterator[bytes]:
    yield from golden
    # The mutator takes a whole number; one is made of the text.
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
    yield from mutations(golden, count, number)


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def keep(codec: str, data: bytes, corpus: Path = CORPUS) -> Path:
    """Put an input into the corpus, as a test from now on; its file."""
    folder = corpus / codec
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(data).hexdigest()[:16]}.bin"
    path.write_bytes(data)
    return path


def shrink(codec: Codec, data: bytes, tries: int = 2000) -> bytes:
    """A shorter input that is a fault too: pieces are taken out as long as the fault stays."""

    def faulty(candidate: bytes) -> bool:
        try:
            check(codec, candidate, random.Random(1))
        except FaultError:
            return True
        return False

    size = len(data) // 2
    while size and tries > 0:
        at = 0
        while at < len(data) and tries > 0:
            tries -= 1
            candidate = data[:at] + data[at + size :]
            if faulty(candidate):
                data = candidate
            else:
                at += size
        size //= 2
    return data


def limit_memory(size: int = 2 << 30) -> None:
    """Bound this process's address space, so that a codec that takes all memory fails and not the machine."""
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
