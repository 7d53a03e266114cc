"""Work shared out over forked processes, and what they have to say on the way.

The casts hold the interpreter, so that two threads of one process are no faster than
one.  A forked process is: it has everything the parent had in memory, shares its open
files, and sends back a few hundred bytes a tensor.

Knows:      fork, pipes, and how an error gets home.
Is told:    what each lane is to do.
Never asks: what the work is.
"""

from __future__ import annotations

import os
import selectors
import signal
import sys
import threading
from typing import TYPE_CHECKING, NoReturn, TypeAlias

import msgspec

from ckptaudit import errors
from ckptaudit.errors import CkptauditError, JobDied, MalformedInput

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

__all__ = ["Lane", "Say", "lanes_at_hand", "run_lanes"]

# Lanes beyond this wait for memory and disk, not for a core.
_MOST_LANES = 4

Say: TypeAlias = "Callable[[Mapping[str, object]], None]"
Lane: TypeAlias = "Callable[[Say], None]"


def lanes_at_hand() -> int:
    """How many lanes may run at once: one for each core, or 1 where forking is no option.

    A process with other threads must not be forked: a lock that one of them holds stays
    locked in the child.  Only Linux is known to be safe otherwise.
    """
    if sys.platform != "linux" or threading.active_count() > 1:
        return 1
    return min(len(os.sched_getaffinity(0)), _MOST_LANES)


def run_lanes(
    lanes: Sequence[Lane], started: Callable[[], None]
) -> Generator[dict[str, object], None, None]:
    """Run each lane in a process of its own.

    Args:
        lanes: Each is called in a fork of this process with a function to say things by.
        started: Called once all processes are there; from then on there may be threads.

    Yields:
        What the lanes say, in the order it arrives.

    Raises:
        CkptauditError: What a lane raised; the others are stopped.
        JobDied: A lane's process ended without a word.
    """
    children: dict[int, int] = {}
    try:
        for lane in lanes:
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                _work(lane, writing)
            os.close(writing)
            children[reading] = pid
        started()
        yield from _listen(children)
    finally:
        for reading, pid in children.items():
            os.close(reading)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _work(lane: Lane, writing: int) -> NoReturn:
    """Be a lane's process, to its end: nothing of the parent's is cleaned up here."""
    status = 1
    try:
        # The parent hears of an interrupt too, and stops its lanes.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

        def say(message: Mapping[str, object]) -> None:
            line = memoryview(msgspec.json.encode(message) + b"\n")
            while line:
                line = line[os.write(writing, line) :]

        try:
            lane(say)
        except CkptauditError as err:
            say({"error": _packed(err)})
        except Exception as err:  # noqa: BLE001 - a bug: the parent raises it, by name
            say({"bug": f"{type(err).__name__}: {err}"})
        status = 0
    finally:
        os._exit(status)


def _listen(children: dict[int, int]) -> Iterator[dict[str, object]]:
    """What *children* say until each has ended; those that have are taken out."""
    with selectors.DefaultSelector() as selector:
        for reading in children:
            selector.register(reading, selectors.EVENT_READ, bytearray())
        while children:
            for key, _ in selector.select():
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fd)
                    _bury(key.fd, children.pop(key.fd))
                key.data.extend(data)
                *lines, rest = key.data.split(b"\n")
                key.data[:] = rest
                for line in lines:
                    yield _understood(line)


def _bury(reading: int, pid: int) -> None:
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    if status:
        how = f"by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "for no reason"
        raise JobDied(f"a process of this job was ended {how}; is there enough memory?")


def _understood(line: bytes | bytearray) -> dict[str, object]:
    message = msgspec.json.decode(line, type=dict[str, object])
    if "error" in message:
        raise _unpacked(message["error"])
    if "bug" in message:
        raise RuntimeError(message["bug"])
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
