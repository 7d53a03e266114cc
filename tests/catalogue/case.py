"""One published technique, forged, and what must be found in it.

Knows:      what makes an answer good enough.
Is told:    a technique and the bytes of a file that uses it.
Never asks: what the package finds today; `gaps` says that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from forge import (
    CALLS_SYSTEM,
    Raw,
    call,
    floats,
    global_,
    pickled,
    state_dict,
    storage_id,
    tensor,
    torch_entries,
    torch_zip,
    value,
)

from ckptaudit.policy import Severity

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptaudit.vm import Limits


@dataclass(frozen=True)
class Hit:
    """What a scan must come to.

    Attributes:
        severity: The least verdict.
        rules: Ids of rules; one of them at least must have a finding.
        says: Text that must stand in a finding, such as the payload itself.
    """

    severity: Severity
    rules: tuple[str, ...]
    says: str = ""


def at_least(severity: Severity, *rules: str, says: str = "") -> Hit:
    return Hit(severity, rules, says)


@dataclass(frozen=True)
class Case:
    """A file that uses a technique.

    Attributes:
        entries: Numbers in the catalogue of published bypasses and vulnerabilities.
        technique: Its short name, the id of the test.
        hit: What must be found.
        file: The file, or what forges it if that takes long.
        advisories: Where it was published.
        refused: Words of the error, if having no answer is a right answer too: the file is
            recognised as something that is not read, and that is said.
        filename: What the file is called.
        limits: Budgets, if those are what it is about.
    """

    entries: tuple[int, ...]
    technique: str
    hit: Hit
    file: bytes | Callable[[], bytes]
    advisories: tuple[str, ...] = ()
    refused: str = ""
    filename: str = "model.ckpt"
    limits: Limits | None = None

    @property
    def data(self) -> bytes:
        """The bytes of the file."""
        return self.file if isinstance(self.file, bytes) else self.file()


# Hits that recur, by what is wrong.
DANGEROUS = at_least(Severity.MALICIOUS, "CKA101")
NOT_LISTED = at_least(Severity.SUSPICIOUS, "CKA101", "CKA102")
STRANGE_CALL = at_least(Severity.SUSPICIOUS, "CKA103")
COMPUTED = at_least(Severity.MALICIOUS, "CKA104")
DOTTED = at_least(Severity.MALICIOUS, "CKA105")
STRANGE_ID = at_least(Severity.SUSPICIOUS, "CKA106")
STRANGE_STATE = at_least(Severity.SUSPICIOUS, "CKA107")
ODD_OPCODES = at_least(Severity.REVIEW, "CKA109")
UNREAD_PICKLE = at_least(Severity.SUSPICIOUS, "CKA110")
UNCHECKED = at_least(Severity.REVIEW, "CKA111")
COSTLY = at_least(Severity.REVIEW, "CKA112")
AMBIGUOUS = at_least(Severity.SUSPICIOUS, "CKA201")
HIDDEN_BYTES = at_least(Severity.SUSPICIOUS, "CKA202")
STRANGE_RECORD = at_least(Severity.REVIEW, "CKA203")
WRONG_STORAGE = at_least(Severity.SUSPICIOUS, "CKA204")
SCRIPT = at_least(Severity.REVIEW, "CKA205")
WRONG_SCHEDULE = at_least(Severity.SUSPICIOUS, "CKA206")
OUTSIDE = at_least(Severity.SUSPICIOUS, "CKA207")
NOT_ALL_READ = at_least(Severity.REVIEW, "CKA208")
UNCOVERED = at_least(Severity.REVIEW, "CKA209")
EXPANDED = at_least(Severity.REVIEW, "CKA210")
# The call of `CALLS_SYSTEM` itself, wherever it hides.
PAYLOAD = at_least(Severity.MALICIOUS, "CKA101", says="posix.system('true')")

EVIL = pickled(CALLS_SYSTEM)
# The same in protocol 0: nothing in it but printable text, and no PROTO to know it by.
PLAIN_EVIL = b"cposix\nsystem\n(S'true'\ntR."
BENIGN = state_dict({"w": 2})
STORED = {"0": floats(1, 2)}
ENTRIES = torch_entries(BENIGN, STORED)


def named(module: str, name: str) -> Raw:
    """A global to stand among plain values."""
    return Raw(global_(module, name))


def zipped(*opcodes: bytes, protocol: int = 2) -> bytes:
    """A checkpoint whose pickle is *opcodes*, between PROTO and STOP."""
    return torch_zip(pickled(*opcodes, protocol=protocol))


def beside_weights(opcodes: bytes) -> bytes:
    """A checkpoint of one tensor on storage 0, of two floats, and what *opcodes* push."""
    weights = Raw(tensor(storage_id("0", 2), (2,)))
    return torch_zip(pickled(value({"w": weights, "x": Raw(opcodes)})), STORED)


def calls(module: str, name: str, *args: object) -> bytes:
    """A checkpoint that makes one call."""
    return zipped(call(module, name, *args))
