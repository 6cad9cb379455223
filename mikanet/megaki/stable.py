"""The stable: Pegasus' horses as processes.

Starting them, two pipes each for the protocol, their words for the log, and killing them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
from typing import Any

from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IProcessTransport, IReadDescriptor, IWriteDescriptor
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.megaki.arcangelo import WorkerCommand
from mikanet.megaki.harness import Listener
from mikanet.megaki.output import Output

#: Size that we ask for for each pipe, and of one read, in bytes.
PIPE_SIZE = 256 * 1024

#: Seconds after a worker's end until what it left behind may write to the log no more.
LAST_LINES_TIME = 1.0

_F_SETPIPE_SZ = 1031

_log = Logger()


class WorkerProcess(ProcessProtocol):
    """One process, as :class:`mikanet.megaki.harness.Worker`.

    :raises OSError: if it cannot be started.
    """

    transport: IProcessTransport

    def __init__(self, reactor: Any, command: WorkerCommand, listener: Listener) -> None:
        self.pid: int | None = None
        self.is_shell = command.is_shell
        self._listener = listener
        self._gone = False
        self._reactor = reactor
        self._output = Output(reactor, self._say, self._listen_to_output)
        with contextlib.ExitStack() as stack:
            # Our copies of the worker's ends are closed here, whatever happens.
            their_in, our_out = _pipe()
            stack.callback(os.close, their_in)
            self._requests = _Requests(reactor, our_out)
            stack.push(self._close_on_error)
            our_in, their_out = _pipe()
            stack.callback(os.close, their_out)
            self._answers = _Answers(reactor, our_in, self)
            nothing = os.open(os.devnull, os.O_RDONLY)
            stack.callback(os.close, nothing)
            if command.is_shell:
                descriptors: dict[int, int | str] = {0: nothing, 1: "r", 2: "r", 3: their_in, 4: their_out}
            else:
                descriptors = {0: their_in, 1: their_out, 2: "r"}
            arguments = command.command_line()
            process = reactor.spawnProcess(
                self, arguments[0], arguments, env=command.environment(), path=command.folder, childFDs=descriptors
            )
            self.pid = process.pid

    def _close_on_error(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            self._requests.close()
            answers = getattr(self, "_answers", None)
            if answers is not None:
                answers.close()

    # -- what the pool does

    def write(self, data: bytes) -> None:
        """Bytes for the worker."""
        self._requests.write(data)

    def retire(self) -> None:
        """Close its input."""
        self._requests.close()

    def kill(self) -> None:
        """SIGKILL to the worker and to all that it started."""
        if self.pid is None or self._gone:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessExitedAlready):
            self.transport.signalProcess("KILL")

    # -- what happens to it

    def data_received(self, data: bytes) -> None:
        """Bytes of the protocol from the worker."""
        if not self._gone:
            self._listener.data_received(data)

    def hung_up(self) -> None:
        """The worker closed the pipe of its answers: it ends, or is of no use any more."""
        self.kill()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Something that the worker printed."""
        self._output.received(childFD, data)

    def _listen_to_output(self, listening: bool) -> None:
        for number in (1, 2):
            reader = getattr(self.transport, "pipes", {}).get(number)
            if reader is not None:
                (reader.resumeProducing if listening else reader.pauseProducing)()

    def _say(self, text: str) -> None:
        _log.info("worker {pid}: {text}", pid=self.pid, text=text)

    def processExited(self, reason: Failure) -> None:
        """It is gone and reaped: at once, whatever its children still hold open."""
        self._gone = True
        self._requests.close()
        last_words = self._answers.finish()
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)  # what it started and left behind
        self._reactor.callLater(LAST_LINES_TIME, self._stop_listening)
        status, number = getattr(reason.value, "status", None), getattr(reason.value, "signal", None)
        how = f"signal {number}" if number else f"status {getattr(reason.value, 'exitCode', status)}"
        self._listener.exited(how, last_words)

    def _stop_listening(self) -> None:
        """What a daemon that it left behind prints is no worker's any more, and its pipes would stay open for ever."""
        self.transport.loseConnection()

    def processEnded(self, reason: Failure) -> None:
        """Its output is at its end too."""
        self._output.ended()


def _pipe() -> tuple[int, int]:
    """A pipe's reading and writing end; both are closed in children that are not meant to have them."""
    ends = os.pipe()
    with contextlib.suppress(OSError):
        fcntl.fcntl(ends[1], _F_SETPIPE_SZ, PIPE_SIZE)
    return ends


class _End:
    """One end of a pipe in the reactor."""

    def __init__(self, reactor: Any, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._reactor = reactor
        self._descriptor = descriptor

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self._descriptor

    def logPrefix(self) -> str:
        """For the log."""
        return "megaki worker"

    def close(self) -> None:
        """Take it out of the reactor and close it."""
        descriptor = self._descriptor
        if descriptor >= 0:
            self._reactor.removeReader(self)
            self._reactor.removeWriter(self)
            self._descriptor = -1
            os.close(descriptor)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor found that nothing more can come or go."""
        self.close()


@implementer(IReadDescriptor)
class _Answers(_End):
    """Where a worker's answers come from."""

    def __init__(self, reactor: Any, descriptor: int, worker: WorkerProcess) -> None:
        super().__init__(reactor, descriptor)
        self._worker = worker
        reactor.addReader(self)

    def doRead(self) -> None:
        """Something came, or the end."""
        try:
            data = os.read(self._descriptor, PIPE_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._worker.data_received(data)
        else:
            self.close()
            self._worker.hung_up()

    def finish(self) -> bytes:
        """The worker is gone: close; what it said last."""
        said = b""
        while self._descriptor >= 0:
            try:
                data = os.read(self._descriptor, PIPE_SIZE)
            except OSError:
                data = b""  # something that it started has the pipe still open
            if not data:
                break
            said += data
        self.close()
        return said

    def connectionLost(self, reason: Failure) -> None:
        """As the end of the answers: there may be some left, which nobody can answer for any more."""
        self.close()
        self._worker.hung_up()


@implementer(IWriteDescriptor)
class _Requests(_End):
    """Where a worker's requests go: at once if the pipe takes them, which it almost always does."""

    def __init__(self, reactor: Any, descriptor: int) -> None:
        super().__init__(reactor, descriptor)
        self._waiting = bytearray()

    def write(self, data: bytes) -> None:
        """Send it, now or when there is room."""
        if self._descriptor < 0:
            return
        if not self._waiting:
            data = data[self._some(data) :]
            if not data or self._descriptor < 0:
                return
            self._reactor.addWriter(self)
        self._waiting += data

    def _some(self, data: bytes | bytearray) -> int:
        """How much of it the pipe took. One that is broken takes everything: its worker's end is on its way to us."""
        try:
            return os.write(self._descriptor, data)
        except OSError as problem:
            return 0 if problem.errno == errno.EAGAIN else len(data)

    def doWrite(self) -> None:
        """There is room."""
        del self._waiting[: self._some(self._waiting)]
        if not self._waiting and self._descriptor >= 0:
            self._reactor.removeWriter(self)
