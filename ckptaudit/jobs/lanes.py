"""Work in forked processes, and what they have to say on the way.

The casts hold the interpreter, so that two threads of one process are no faster than
one.  A forked process is: it has everything the parent had in memory, shares its open
files, and sends back a few hundred bytes a tensor.

Knows:      fork, pipes, and how an error gets home.
Is told:    what each process is to do.
Never asks: what the work is.
"""

from __future__ import annotations

import os
import selectors
import signal
import sys
import threading
import traceback
import warnings
from typing import TYPE_CHECKING, ClassVar, NoReturn, TypeAlias

import msgspec

from ckptaudit import errors
from ckptaudit.errors import CkptauditError, JobDied, MalformedInput

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

__all__ = ["Fork", "Lane", "Say", "can_fork", "lanes_at_hand", "listen", "run_lanes"]

# Lanes beyond this wait for memory and disk, not for a core.
_MOST_LANES = 4
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Say: TypeAlias = "Callable[[Mapping[str, object]], None]"
Lane: TypeAlias = "Callable[[Say], None]"


def can_fork() -> bool:
    """Whether this process may be forked.

    One with other Python threads must not be: a lock that one of them holds stays locked in
    the child.  Threads of libraries are another matter: those of OpenBLAS, which numpy starts,
    are stopped for a fork by its own handlers, and no lane calls on them.  Only Linux is known
    to be safe otherwise.
    """
    return sys.platform == "linux" and threading.active_count() == 1


def lanes_at_hand(beside: int = 0) -> int:
    """How many lanes may run at once: one for each core that is free, at least one.

    Args:
        beside: Other processes of the job that keep a core busy each.
    """
    if not can_fork():
        return 1
    return max(1, min(len(os.sched_getaffinity(0)), _MOST_LANES) - beside)


class Fork:
    """One piece of work in a process of its own; it has begun when this is made.

    Args:
        lane: Called in a fork of this process with a function to say things by.

    Raises:
        OSError: There is no room for another process, or for a pipe to it.
    """

    # Where this process hears others; a child must not hold these ends open, or a sibling that
    # nobody listens to any more would wait for ever to be heard.
    _ears: ClassVar[set[int]] = set()

    def __init__(self, lane: Lane) -> None:
        self.reading, writing = os.pipe()
        self._ears.add(self.reading)
        # A signal between the fork and the child's first step would end in the caller's cleanup.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        try:
            self._pid = _fork()
            if self._pid == 0:
                for ear in self._ears:
                    os.close(ear)
                _work(lane, writing, before)
        except OSError:
            self._close()
            raise
        finally:
            os.close(writing)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _close(self) -> None:
        self._ears.discard(self.reading)
        os.close(self.reading)

    def bury(self) -> None:
        """Take leave of a process that has ended by itself.

        Raises:
            JobDied: It ended without a word.
        """
        self._close()
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        if status:
            how = f"by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "for no reason"
            raise JobDied(f"a process of this job was ended {how}; is there enough memory?")

    def end(self) -> None:
        """Stop the process, if it has not ended; it is gone when this returns."""
        if self._pid:
            self._close()
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0


def run_lanes(lanes: Sequence[Lane]) -> Generator[dict[str, object], None, None]:
    """Run each lane in a process of its own.

    Yields:
        What the lanes say, in the order it arrives.

    Raises:
        CkptauditError: What a lane raised; the others are stopped.
        JobDied: A lane's process ended without a word, or could not begin.
    """
    forks: list[Fork] = []
    try:
        for lane in lanes:
            forks.append(Fork(lane))  # noqa: PERF401 - those made before an error must be ended
        yield from listen(forks)
    except OSError as err:
        raise JobDied(f"no process could be made for a part of the work ({err.strerror})") from err
    finally:
        for fork in forks:
            fork.end()


def _fork() -> int:
    with warnings.catch_warnings():
        # Python 3.12 warns where the process has any other thread, also of a library: `can_fork`.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _work(lane: Lane, writing: int, mask: set[int | signal.Signals]) -> NoReturn:
    """Be a lane's process, to its end: nothing of the parent's is cleaned up here."""
    status = 1
    try:
        # The parent hears of an interrupt too, and stops its lanes.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

        def say(message: Mapping[str, object]) -> None:
            line = memoryview(msgspec.json.encode(message) + b"\n")
            while line:
                line = line[os.write(writing, line) :]

        try:
            lane(say)
        except CkptauditError as err:
            say({"error": _packed(err)})
        # A bug has nobody to be raised to: the caller is in another process, and whatever kind it
        # is, only what goes through the pipe is known there, where it is raised again.
        except Exception as err:  # noqa: BLE001 - raised again by `_understood`, with its stack
            say({"bug": f"{type(err).__name__}: {err}", "trace": traceback.format_exc()})
        status = 0
    finally:
        os._exit(status)


def listen(forks: Iterable[Fork]) -> Iterator[dict[str, object]]:
    """What *forks* say until each has ended; raises like `run_lanes`, but stops none."""
    with selectors.DefaultSelector() as selector:
        for fork in forks:
            selector.register(fork.reading, selectors.EVENT_READ, (fork, bytearray()))
        while selector.get_map():
            for key, _ in selector.select():
                fork, heard = key.data
                data = os.read(fork.reading, 1 << 16)
                if not data:
                    selector.unregister(fork.reading)
                    fork.bury()
                heard.extend(data)
                *lines, rest = heard.split(b"\n")
                heard[:] = rest
                for line in lines:
                    yield _understood(line)


def _understood(line: bytes | bytearray) -> dict[str, object]:
    message = msgspec.json.decode(line, type=dict[str, object])
    if "error" in message:
        raise _unpacked(message["error"])
    if "bug" in message:
        # What a debugger would want to see is the cause, which only the other process has.
        raise RuntimeError(message["bug"]) from RuntimeError(message.get("trace"))
    return message


def _packed(err: CkptauditError) -> dict[str, object]:
    packed: dict[str, object] = {"kind": type(err).__name__, "message": str(err.args[0])}
    if isinstance(err, MalformedInput):
        packed |= {"where": err.where, "offset": err.offset}
    return packed


def _unpacked(packed: object) -> CkptauditError:
    match packed:
        case {"kind": str(kind), "message": str(message), "where": str(where), "offset": offset}:
            made = getattr(errors, kind)(message, where=where, offset=offset)
        case {"kind": str(kind), "message": str(message)}:
            made = getattr(errors, kind)(message)
        case _:
            made = JobDied("a process of this job said what nobody understands")
    return made if isinstance(made, CkptauditError) else JobDied(str(packed))
