"""Records that nothing refers to: each is run as a pickle, whatever it is called."""

from __future__ import annotations

import pytest
from forge import (
    CALLS_SYSTEM,
    EMPTY_TUPLE,
    NEWOBJ,
    NONE,
    STACK_GLOBAL,
    STOP,
    Raw,
    ZipEntry,
    call,
    ext1,
    floats,
    global_,
    inst,
    pickled,
    put,
    state_dict,
    storage_id,
    string_line,
    tensor,
    torch_entries,
    torch_zip,
    unicode_line,
    value,
    values,
    zip_archive,
)

from ckptaudit.containers import Container, Kind, Role, open_container
from ckptaudit.policy import Judgement, Severity, judge
from ckptaudit.source import BufferSource

ENTRIES = torch_entries(state_dict({"a": 1}), {"0": floats(1)})
SCRIPT = [
    *torch_entries(pickled(value({"w": Raw(tensor(storage_id("0", 1), (1,)))})), {"0": floats(1)}),
    ZipEntry("archive/constants.pkl", pickled(value((Raw(tensor(storage_id("0", 2), (2,))),)))),
    ZipEntry("archive/constants/0", CALLS_SYSTEM[:8].ljust(8)),
]
# As protocol 0 writes it: no PROTO at the beginning, and text only.
PROTOCOL_0 = global_("posix", "system") + b"(" + string_line(b"'true'") + b"tR" + STOP


def opened(entries: list[ZipEntry]) -> Container:
    return open_container(BufferSource(zip_archive(entries)))


def judged(entries: list[ZipEntry]) -> Judgement:
    return judge(opened(entries))


def rules(judgement: Judgement) -> set[str]:
    return {finding.rule for finding in judgement.findings}


@pytest.mark.parametrize("method", [0, 8], ids=["stored", "deflated"])
@pytest.mark.parametrize(
    "name",
    ["readme", "data/7", "data/x.bin", "weights", ".data/version", ".data/x", "x.pickle", "a/b/c"],
)
def test_a_hidden_pickle_is_found_under_any_name(name: str, method: int) -> None:
    judgement = judged([*ENTRIES, ZipEntry(f"archive/{name}", PROTOCOL_0, method=method)])

    assert judgement.verdict is Severity.MALICIOUS
    assert {"CKA101", "CKA110"} <= rules(judgement)


@pytest.mark.parametrize("name", ["version", ".format_version", ".storage_alignment"])
def test_a_hidden_pickle_is_found_in_the_place_of_metadata(name: str) -> None:
    entries = [entry for entry in ENTRIES if not entry.name.endswith(f"/{name}")]

    judgement = judged([*entries, ZipEntry(f"archive/{name}", PROTOCOL_0)])

    assert judgement.verdict is Severity.MALICIOUS


@pytest.mark.parametrize("name", ["code/__torch__.py", "extra/notes", "constants/9", "data/9"])
def test_a_hidden_pickle_is_found_in_a_torchscript_archive(name: str) -> None:
    judgement = judged([*SCRIPT, ZipEntry(f"archive/{name}", PROTOCOL_0)])

    assert judgement.verdict is Severity.MALICIOUS


@pytest.mark.parametrize(
    ("rule", "pickle"),
    [
        ("CKA101", PROTOCOL_0),
        ("CKA101", CALLS_SYSTEM + STOP),
        ("CKA101", CALLS_SYSTEM),
        ("CKA101", CALLS_SYSTEM + b"\xff anything"),
        ("CKA101", inst("posix", "system", "true")),
        ("CKA101", global_("posix", "system") + STOP),
        ("CKA101", put(0).join([NONE, CALLS_SYSTEM + STOP])),
        ("CKA101", unicode_line(b"posix") + unicode_line(b"system") + STACK_GLOBAL + STOP),
        ("CKA102", call("thing", "run", "true") + STOP),
        ("CKA102", global_("thing", "Thing") + EMPTY_TUPLE + NEWOBJ),
        ("CKA104", values(b"posix", b"system") + STACK_GLOBAL + EMPTY_TUPLE + b"R"),
        ("CKA104", ext1(1) + STOP),
    ],
    ids=[
        "protocol-0",
        "call",
        "call without STOP",
        "call and garbage",
        "inst",
        "name only",
        "after a value",
        "stack-global",
        "unknown function",
        "unknown class",
        "computed name",
        "extension",
    ],
)
def test_what_a_hidden_pickle_asks_for_is_judged_like_any_other(rule: str, pickle: bytes) -> None:
    judgement = judged([*ENTRIES, ZipEntry("archive/readme", pickle)])

    assert {rule, "CKA110"} <= rules(judgement)


@pytest.mark.parametrize("around", [ENTRIES, SCRIPT], ids=["checkpoint", "torchscript"])
def test_a_hidden_pickle_of_allowed_names_is_suspicious_too(around: list[ZipEntry]) -> None:
    pickle = call("collections", "OrderedDict") + STOP

    judgement = judged([*around, ZipEntry("archive/extra/readme", pickle)])

    assert judgement.verdict is Severity.SUSPICIOUS
    assert "CKA110" in rules(judgement)


@pytest.mark.parametrize(
    "content",
    [
        b"config for training\nlearning rate 1e-4\n",
        b"cat\ndog\nhorse\n",
        b"import torch\nimport numpy as np\n",
        b"(in thousands)\nof steps\n",
        b"class Net(Module):\n  __parameters__ = []\n  def forward(self): ...\n",
        b"Please read this first.\n",
        b'{"epoch": 3}',
        b"I1\n.",
        b"N.",
        floats(*(0.1 * n for n in range(-500, 500))),
        bytes(range(256)) * 4,
        b"\x89PNG\r\n\x1a\n" + bytes(100),
    ],
    ids=[
        "sentences that begin with c",
        "labels",
        "imports",
        "parenthesis",
        "code",
        "letter",
        "json",
        "a number as a pickle",
        "nothing as a pickle",
        "floats",
        "all bytes",
        "png",
    ],
)
def test_what_asks_for_nothing_is_a_strange_record_and_no_more(content: bytes) -> None:
    judgement = judged([*ENTRIES, ZipEntry("archive/readme", content)])

    assert rules(judgement) == {"CKA203"}
    assert judgement.coverage.complete


def test_the_pickles_that_torchscript_writes_beside_its_code_are_no_extra_ones() -> None:
    debug = pickled(value(((0, "forward", 1),)))

    judgement = judged([*SCRIPT, ZipEntry("archive/code/__torch__.py.debug_pkl", debug)])

    assert rules(judgement) == {"CKA205"}


@pytest.mark.parametrize(
    "content",
    [b"class Net(Module):\n  __parameters__ = []\n", b"cat\ndog\n", b"(i\nf x)\n"],
    ids=["class", "labels", "parenthesis"],
)
def test_the_code_of_a_torchscript_archive_is_not_taken_for_a_pickle(content: bytes) -> None:
    judgement = judged([*SCRIPT, ZipEntry("archive/code/__torch__.py", content)])

    assert rules(judgement) == {"CKA205"}


def test_a_storage_that_is_referred_to_is_never_looked_into() -> None:
    """Weights may be any bytes at all; nothing reads them as a pickle."""
    weights = PROTOCOL_0.ljust(-(-len(PROTOCOL_0) // 4) * 4)

    judgement = judge(
        open_container(
            BufferSource(torch_zip(state_dict({"a": len(weights) // 4}), {"0": weights}))
        )
    )

    assert (judgement.verdict, judgement.coverage.complete) == (Severity.CLEAN, True)


def test_a_constant_that_a_torchscript_archive_refers_to_is_never_looked_into() -> None:
    numel = -(-len(PROTOCOL_0) // 4)
    constants = pickled(value((Raw(tensor(storage_id("0", numel), (numel,))),)))
    entries = [
        *torch_entries(pickled(value({})), {}),
        # Before its pickle in the directory, but referred to all the same.
        ZipEntry("archive/constants/0", PROTOCOL_0.ljust(4 * numel)),
        ZipEntry("archive/constants.pkl", constants),
    ]

    container = opened(entries)

    assert container.kind is Kind.TORCHSCRIPT
    assert rules(judge(container)) == {"CKA205"}
    assert {r.role for r in container.records if "constants/" in r.name} == {Role.STORAGE}
