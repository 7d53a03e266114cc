"""The ways a job can fail to reach an answer.

A bad *finding* is a result, not an exception: `scan` returns it.  An exception
means the question itself could not be answered.  Its text is one line that says
what is wrong, where, and what to do next.
"""

from __future__ import annotations

__all__ = [
    "CastOverflow",
    "CkptauditError",
    "Incomplete",
    "JobDied",
    "LimitExceeded",
    "MalformedInput",
    "NoSuchRecord",
    "OutputExists",
    "OutputFailed",
    "PolicyInvalid",
    "Refused",
    "SourceChanged",
    "SourceUnreadable",
    "Unsupported",
]


class CkptauditError(Exception):
    """Base of everything ckptaudit raises on purpose; never raised itself."""


class SourceUnreadable(CkptauditError):
    """The operating system would not give us the bytes: no such file, a folder, no permission."""


class SourceChanged(CkptauditError):
    """The file is no longer the one that was opened; nothing said about it can be relied on."""


class MalformedInput(CkptauditError):
    """The bytes break the rules of their own format.

    Attributes:
        where: The record being read, such as ``archive/data.pkl``.
        offset: Byte offset inside that record, or None if it has no position.
    """

    def __init__(self, message: str, *, where: str, offset: int | None = None) -> None:
        super().__init__(message)
        self.where = where
        self.offset = offset

    def __str__(self) -> str:
        at = self.where if self.offset is None else f"{self.where} @ byte {self.offset}"
        return f"{at}: {self.args[0]}"


class LimitExceeded(MalformedInput):
    """Reading on would cost more than the limits allow."""


class Unsupported(CkptauditError):
    """The bytes are what they claim to be, but it is not something we read or convert."""


class NoSuchRecord(CkptauditError):
    """The record asked for is not in the file."""


class Refused(CkptauditError):
    """Policy forbids the job: the file may be dangerous, or the result would lose too much."""


class PolicyInvalid(CkptauditError):
    """What is to say which findings to disregard, a policy or a baseline, is not one."""


class CastOverflow(Refused):
    """A finite weight has no finite value in the type asked for."""


class Incomplete(CkptauditError):
    """Part of the file could not be read, and the job is not one for the rest alone."""


class OutputExists(CkptauditError):
    """The file to be written is there already."""


class OutputFailed(CkptauditError):
    """The operating system would not take the result: no permission, no space, no such folder."""


class JobDied(CkptauditError):
    """A process that worked for us was ended from outside."""
