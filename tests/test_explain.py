"""What `explain` says: never less than a scan, who would have done what, and where it stands."""

from __future__ import annotations

import builtins
import re
from gzip import compress
from typing import TYPE_CHECKING

import pytest
from catalogue import CASES, Case
from catalogue.benign import FILES
from commands import audit
from forge import (
    APPEND,
    CALLS_SYSTEM,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_TUPLE,
    MARK,
    NEWOBJ_EX,
    NONE,
    OBJ,
    POP,
    REDUCE,
    STACK_GLOBAL,
    STOP,
    TUPLE1,
    Raw,
    binget,
    binput,
    binunicode,
    call,
    called,
    deflated,
    ext1,
    floats,
    frame,
    global_,
    inst,
    legacy_stream,
    long1,
    made,
    object_npy,
    persid,
    pickled,
    python_zip,
    safetensors_file,
    short_binunicode,
    stack_global,
    state_dict,
    storage_id,
    tar_archive,
    tar_members,
    tensor,
    torch_entries,
    torch_zip,
    torchscript_zip,
    value,
    with_entry,
    zip_archive,
)
from forge.framings import MAGIC as TORCH_MAGIC
from forge.zips import ZipEntry
from oracle import torch

from ckptaudit import explain, scan
from ckptaudit.errors import CkptauditError, NoSuchRecord, SourceChanged
from ckptaudit.jobs.explain import Explanation, explaining
from ckptaudit.policy import RULES, Finding, Rule, allowed
from ckptaudit.policy.dangerous import dangerous
from ckptaudit.policy.sentences import sentence
from ckptaudit.report.explanation import explanation_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TRUSTING = "torch.load(weights_only=False)"
REFUSED = "torch >= 2.6 refuses it by default"
TAR_REFUSED = (
    "torch >= 2.6 refuses tar checkpoints by default, and torch <= 2.5.1 did not even with "
    "weights_only=True (CVE-2025-32434)"
)
SCRIPT_REFUSED = "torch >= 2.6 refuses TorchScript archives by default"
GOING_ON = "when a program goes on to unpickle what follows the first pickle"
NOT_BY_TORCH = "if it were unpickled, which torch.load does not do"
FROM_MEMORY = f"when loaded with pickle.load, or from memory with {TRUSTING}"
NOT_RELIED_ON = "do not rely on torch >= 2.6 to refuse it"


def explained(folder: Path, data: bytes, context: int = 4) -> Explanation:
    path = folder / "a.pt"
    path.write_bytes(data)
    return explain(path, context=context, with_hash=False)


def the_sentence(folder: Path, data: bytes, rule: str = "CKA101") -> str:
    """The only sentence about a finding of *rule*; or the first, if it is the file itself."""
    first, *others = (
        found for found in explained(folder, data).findings if found.finding.rule == rule
    )
    assert not others or first.finding.offset == first.finding.stream_offset
    return first.sentence


def case_of(technique: str) -> Case:
    (found,) = (case for case in CASES if case.technique == technique)
    return found


# Never less than a scan


SCANNED = [pytest.param(case, id=case.technique) for case in CASES if case.limits is None]


@pytest.mark.parametrize("case", SCANNED)
def test_an_explanation_has_every_finding_of_a_scan(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(case.data)
    try:
        scanned = scan(path)
    except CkptauditError as err:
        with pytest.raises(type(err)):
            explain(path)
        return

    answer = explain(path)

    assert tuple(found.finding for found in answer.findings) == scanned.findings
    assert (answer.verdict, answer.coverage) == (scanned.verdict, scanned.coverage)
    assert (answer.container, answer.sha256) == (scanned.container, scanned.sha256)
    text = "".join(explanation_text(answer))
    assert text.isascii()
    for found in answer.findings:
        assert found.sentence.isprintable()
        assert found.sentence in text
        assert found.finding.message in text


@pytest.mark.parametrize(
    "data",
    [
        *(pytest.param(case.file, id=case.technique) for case in CASES if case.limits is None),
        *(pytest.param(benign.file, id=benign.kind) for benign in FILES),
    ],
)
def test_every_finding_about_an_instruction_stands_in_the_listing(
    data: bytes | Callable[[], bytes], tmp_path: Path
) -> None:
    """In the pickle of its record, at its offset, with its rule; wherever that pickle is."""
    path = tmp_path / "a.pt"
    path.write_bytes(data if isinstance(data, bytes) else data())
    try:
        answer = explain(path, with_hash=False)
    except CkptauditError:
        return
    listed = {
        (section.split(": protocol ", 1)[0], int(mark[1], 16), rule)
        for section in "".join(explanation_text(answer)).split("\n== ")[1:]
        for mark in re.finditer(r"^ > +([0-9a-f]+) .*\[(CKA[0-9, CKA]+)\]$", section, re.MULTILINE)
        for rule in mark[2].split(", ")
    }

    expected = {
        (found.finding.record, found.finding.stream_offset, found.finding.rule)
        for found in answer.findings
        if found.finding.stream_offset is not None
    }

    assert expected == listed


@pytest.mark.parametrize(
    "rule", [rule for rule in RULES.values() if rule.id < "CKA3"], ids=lambda rule: rule.id
)
def test_every_rule_about_a_framing_comes_with_advice(rule: Rule) -> None:
    """Where no instruction says what would be done, a sentence says what to do."""
    finding = Finding(rule.id, rule.severity, "is odd", "", None)

    said = sentence(finding, None, None)

    assert said.startswith("is odd; ")
    if rule.id >= "CKA2":
        assert re.search("fetch|convert|load|ask", said.removeprefix("is odd; "))


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (
            torch_zip(
                pickled(value({"w": Raw(tensor(storage_id("x", 2), (2,)))})), {"x": floats(1, 2)}
            ),
            "CKA203",
        ),
        (case_of("a-storage-that-inflates-a-thousandfold").file, "CKA112"),
        (python_zip({"readme": b"x"}), "CKA203"),
    ],
    ids=["storage-of-a-strange-name", "storage-that-inflates-a-thousandfold", "no-checkpoint"],
)
def test_what_a_tensor_refers_to_is_not_said_to_be_nobodys(
    tmp_path: Path, data: bytes | Callable[[], bytes], rule: str
) -> None:
    """Nor is a file that holds no checkpoint to be converted."""
    said = the_sentence(tmp_path, data if isinstance(data, bytes) else data(), rule)

    assert "nothing refers" not in said
    assert "convert" not in said


# Who would have done what


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            torch_zip(pickled(CALLS_SYSTEM)),
            f"when loaded with {TRUSTING}, at byte 0x1a of archive/data.pkl; {REFUSED}",
        ),
        (
            legacy_stream(pickled(CALLS_SYSTEM)),
            f"when loaded with {TRUSTING}, at byte 0x1a of object; {REFUSED}",
        ),
        (
            tar_archive(tar_members(pickled(CALLS_SYSTEM))),
            f"when loaded with {TRUSTING}, at byte 0x1a of pickle; {TAR_REFUSED}",
        ),
        (
            pickled(CALLS_SYSTEM),
            f"when loaded with pickle.load or {TRUSTING}, at byte 0x1a of pickle; {REFUSED}",
        ),
        (
            pickled(NONE) + pickled(CALLS_SYSTEM),
            f"{GOING_ON}, at byte 0x1a of pickle 1; {REFUSED}",
        ),
        (
            torchscript_zip(pickled(CALLS_SYSTEM)),
            f"if it were unpickled, at byte 0x1a of archive/data.pkl; {SCRIPT_REFUSED}",
        ),
        (
            zip_archive(
                [
                    *torch_entries(pickled(NONE), {}),
                    ZipEntry("archive/more.pkl", pickled(CALLS_SYSTEM)),
                ]
            ),
            "if it were unpickled, which torch.load does not do, at byte 0x1a of archive/more.pkl",
        ),
        (
            legacy_stream(pickled(NONE), tail=pickled(CALLS_SYSTEM)),
            f"{NOT_BY_TORCH}, at byte 0x1a of the pickle at byte 144",
        ),
        (
            legacy_stream(pickled(NONE), magic=pickled(CALLS_SYSTEM, POP, long1(TORCH_MAGIC))),
            f"when loaded with pickle.load or {TRUSTING}, at byte 0x1a of magic; {REFUSED}",
        ),
        (
            pickled(NONE) + b"\xff" + pickled(CALLS_SYSTEM),
            f"{NOT_BY_TORCH}, at byte 0x1a of the pickle at byte 5",
        ),
        (
            safetensors_file({}) + pickled(CALLS_SYSTEM),
            f"{NOT_BY_TORCH}, at byte 0x1a of the pickle at byte 10",
        ),
        (
            object_npy(pickled(CALLS_SYSTEM)),
            "when loaded with numpy.load(allow_pickle=True), at byte 0x1a of data",
        ),
        (
            tar_archive([("cposix\nsystem\n(S'true'\ntR.", b"")]),
            f"{FROM_MEMORY}, at byte 0x18 of pickle; {REFUSED}",
        ),
    ],
    ids=[
        "zip",
        "legacy",
        "tar",
        "bare",
        "behind-another",
        "torchscript",
        "beside-data.pkl",
        "behind-the-storages",
        "magic-number",
        "among-loose-bytes",
        "behind-safetensors",
        "array",
        "name-in-a-tar",
    ],
)
def test_a_sentence_says_what_who_and_where(tmp_path: Path, data: bytes, said: str) -> None:
    assert the_sentence(tmp_path, data) == f"would have called posix.system('true') {said}"


@pytest.mark.parametrize(
    ("opcodes", "rule", "act", "torch_does"),
    [
        (global_("posix", "system"), "CKA101", "imported posix.system", REFUSED),
        (inst("some", "Thing", 1), "CKA102", "called some.Thing(1)", REFUSED),
        (MARK + global_("some", "Thing") + OBJ, "CKA102", "called some.Thing()", REFUSED),
        (
            global_("some", "Thing") + EMPTY_TUPLE + EMPTY_DICT + NEWOBJ_EX,
            "CKA102",
            "made some.Thing()",
            REFUSED,
        ),
        (
            call("builtins", "str", "os") + value("system") + STACK_GLOBAL,
            "CKA104",
            "imported a name computed while unpickling, from builtins.str('os'), 'system'",
            REFUSED,
        ),
        (
            ext1(7),
            "CKA104",
            "asked for what nobody can tell from the file (<EXT1 7>)",
            REFUSED,
        ),
        (
            call("collections", "OrderedDict", 7),
            "CKA103",
            "called collections.OrderedDict(7)",
            NOT_RELIED_ON,
        ),
        (persid("x"), "CKA106", "asked the loader for 'x'", NOT_RELIED_ON),
        (
            made("some", "Thing", {"__class__": 1}),
            "CKA107",
            "set the state of some.Thing() to {'__class__': 1}",
            REFUSED,
        ),
        # torch has classes of its own on its list that ours lacks.
        (
            global_("torch.sparse", "IntTensor"),
            "CKA102",
            "imported torch.sparse.IntTensor",
            NOT_RELIED_ON,
        ),
        (call("torch.hub", "load", "x"), "CKA101", "called torch.hub.load('x')", REFUSED),
    ],
    ids=[
        "imported",
        "inst",
        "obj",
        "newobj-ex",
        "computed",
        "extension",
        "odd-arguments",
        "persistent-id",
        "state",
        "class-of-torch",
        "function-of-torch",
    ],
)
def test_a_sentence_claims_of_torch_only_what_is_known(
    tmp_path: Path, opcodes: bytes, rule: str, act: str, torch_does: str
) -> None:
    sentence = the_sentence(tmp_path, torch_zip(pickled(opcodes)), rule)

    assert sentence.startswith(f"would have {act} when loaded with {TRUSTING}, at byte 0x")
    assert sentence.endswith(f" of archive/data.pkl; {torch_does}")


@pytest.mark.parametrize(
    ("parts", "rule", "said"),
    [
        # The frame ends inside BINUNICODE, which shows when GLOBAL is read.
        (
            [frame(3), binunicode("a"), global_("posix", "system"), POP],
            "CKA109",
            "a frame ended inside the opcode before, at byte 0x11 of archive/data.pkl; ",
        ),
        (
            [call("collections", "OrderedDict"), NONE, NONE, APPEND, POP],
            "CKA103",
            "appends to nothing, at byte 0x1f of archive/data.pkl; ",
        ),
    ],
    ids=["at-a-name", "change"],
)
def test_what_is_odd_about_an_instruction_is_not_taken_for_what_it_asks_for(
    tmp_path: Path, parts: list[bytes], rule: str, said: str
) -> None:
    sentence = the_sentence(tmp_path, torch_zip(pickled(*parts, protocol=4)), rule)

    assert sentence.startswith(said)


def test_what_a_whole_pickle_costs_is_not_taken_for_its_first_instruction(
    tmp_path: Path,
) -> None:
    deep = EMPTY_LIST + (EMPTY_LIST + binput(0)) + (TUPLE1 * 2000) + APPEND
    pickle = global_("posix", "system") + POP + deep + STOP

    sentence = the_sentence(tmp_path, torch_zip(pickle), "CKA112")

    assert "posix" not in sentence
    assert sentence.endswith("do not load it")


def test_what_is_said_to_be_refused_is_not_on_the_list_of_torch() -> None:
    """A sentence says so of any name that is not ours, outside torch, and of dangerous ones."""
    known = torch._weights_only_unpickler._get_allowed_globals()  # noqa: SLF001 - the oracle

    assert "collections.OrderedDict" in known
    for qualified in known:
        module, _, name = qualified.rpartition(".")
        assert not dangerous(module, name)
        if module.split(".", 1)[0] != "torch":
            assert allowed(module, name)
        if module == builtins.__name__:
            # The restricted loader takes the name that Python 2 has for it as well.
            assert allowed("__builtin__", name)


def test_what_is_inside_another_file_is_said_to_be(tmp_path: Path) -> None:
    answer = explained(tmp_path, compress(torch_zip(pickled(CALLS_SYSTEM)), mtime=0))

    (pickle,) = answer.pickles
    assert pickle.executed_by.startswith("in the file inside (gzip): ")
    (sentence,) = (one.sentence for one in answer.findings if one.finding.rule == "CKA101")
    assert f"when loaded with {TRUSTING} from the file inside (gzip), at byte 0x1a of gzip!" in (
        sentence
    )


@pytest.mark.parametrize(
    ("func", "torch_does"),
    [
        (("pickle", "loads"), REFUSED),
        (("torch.storage", "_load_from_bytes"), REFUSED),
        (("torch", "uint4"), NOT_RELIED_ON),
    ],
    ids=["pickle-loads", "load-from-bytes", "a-name-torch-may-know"],
)
def test_what_a_pickle_carries_is_told_with_the_call_that_would_unpickle_it(
    tmp_path: Path, func: tuple[str, str], torch_does: str
) -> None:
    """Of the restricted loader it is the call that matters: it never sees those bytes."""
    inner = pickled(CALLS_SYSTEM)
    outer = pickled(called(global_(*func), inner), protocol=4)
    at = outer.rindex(REDUCE)

    answer = explained(tmp_path, torch_zip(outer))

    main, carried = answer.pickles
    record = f"archive/data.pkl!bytes at {at}!pickle"
    assert (main.record, carried.record) == ("archive/data.pkl", record)
    assert (carried.offset, carried.nbytes) == (None, len(inner))
    by = f"the call at byte 0x{at:x} of archive/data.pkl"
    assert carried.executed_by.startswith(f"{by} is given these bytes and may unpickle them: ")
    (sentence,) = (one.sentence for one in answer.findings if one.finding.record == record)
    assert sentence == (
        f"would have called posix.system('true') when loaded with {TRUSTING}, if {by} unpickles "
        f"the bytes it is given, at byte 0x1a of {record}; {torch_does}"
    )
    text = "".join(explanation_text(answer))
    assert f"\n== {record}: protocol 2, " in text
    assert sentence in text


def test_what_is_carried_by_what_is_carried_is_explained_too(tmp_path: Path) -> None:
    data = pickled(CALLS_SYSTEM)
    for _ in range(3):
        data = pickled(called(global_("pickle", "loads"), data), protocol=4)

    answer = explained(tmp_path, data)

    assert [pickle.record.count("!bytes at ") for pickle in answer.pickles] == [0, 1, 2, 3]
    assert all(pickle.instructions for pickle in answer.pickles)
    assert answer.findings[-1].sentence.count(" unpickles the bytes it is given") == 3


# Names


def test_names_are_told_with_origin_use_and_arguments(tmp_path: Path) -> None:
    pickle = pickled(
        short_binunicode("posix") + binput(0) + POP,
        *(
            binget(0) + short_binunicode("system") + STACK_GLOBAL + value((text,)) + REDUCE + POP
            for text in ("a", "b")
        ),
        global_("some", "unused"),
        POP,
        stack_global("some", "key") + binput(1) + POP,
        EMPTY_DICT + MARK + binget(1) + NONE + b"u",
        protocol=4,
    )

    (found,) = explained(tmp_path, torch_zip(pickle)).pickles

    system, unused, key = found.globals
    assert (system.module, system.name, system.count) == ("posix", "system", 2)
    assert system.uses == (("REDUCE target", 2),)
    assert system.arguments == ("('a')", "('b')")
    assert all("memo slot 0, set at byte 0x9" in resolved for resolved in system.resolved)
    assert (unused.name, unused.uses, unused.resolved) == ("unused", (), ("literal",))
    assert (key.name, key.uses) == ("key", (("dict key", 1),))


def test_the_type_of_a_storage_is_told_as_such_and_why_it_is_allowed(tmp_path: Path) -> None:
    data = torch_zip(state_dict({"a": 3}), {"0": floats(1, 2, 3)})

    (found,) = explained(tmp_path, data).pickles

    by_name = {row.name: row for row in found.globals}
    assert by_name["FloatStorage"].uses == (("storage type in a persistent id", 1),)
    assert by_name["FloatStorage"].allowed == "type of a storage"
    assert by_name["_rebuild_tensor_v2"].uses == (("REDUCE target", 1),)
    assert found.instructions == ()


def test_a_flood_of_names_is_counted(tmp_path: Path) -> None:
    flood = b"".join(global_("m", f"n{number}") + POP for number in range(1500))

    (found,) = explained(tmp_path, torch_zip(pickled(flood, CALLS_SYSTEM))).pickles

    assert len(found.globals) + found.more_globals == 1501
    assert len(found.globals) == 1000


# Which instructions


@pytest.mark.parametrize("context", [0, 1, 3])
def test_the_instructions_around_each_finding_are_shown(tmp_path: Path, context: int) -> None:
    padding = (NONE + POP) * 50
    data = torch_zip(pickled(padding, CALLS_SYSTEM, POP, padding, NONE))

    (found,) = explained(tmp_path, data, context=context).pickles

    assert found.offset is not None
    numbers = [line.number for line in found.instructions]
    (at,) = (line.number for line in found.instructions if line.rules)
    assert numbers == list(range(at - context, at + context + 1))
    for line in found.instructions:
        assert line.file_offset == found.offset + line.offset
        if line.rules:
            assert data[line.file_offset :][:1] == REDUCE


def test_an_answer_holds_a_bounded_number_of_instructions(tmp_path: Path) -> None:
    apart = (NONE + POP) * 100
    data = torch_zip(pickled((CALLS_SYSTEM + POP + apart) * 150, global_("some", "last")))

    (found,) = explained(tmp_path, data, context=100).pickles

    assert len(found.instructions) == 20_000
    assert found.globals[-1].name == "last"


def test_a_broken_pickle_is_shown_where_it_breaks(tmp_path: Path) -> None:
    (found,) = explained(tmp_path, torch_zip(pickled(CALLS_SYSTEM, POP, b"\xff"))).pickles

    assert found.instructions[-1].note == "breaks here: no opcode 0xff exists"
    assert found.error is not None


def test_a_compressed_pickle_has_offsets_in_itself_alone(tmp_path: Path) -> None:
    pickle = pickled(CALLS_SYSTEM)
    entries = with_entry(torch_entries(pickle, {}), "data.pkl", packed=deflated(pickle), method=8)

    path = tmp_path / "a.pt"
    path.write_bytes(zip_archive(entries))
    with explaining(path, with_hash=False) as job:
        lines = list(job.listing(0))

    assert [line.opcode for line in lines][-2:] == ["REDUCE", "STOP"]
    assert {line.file_offset for line in lines} == {None}
    assert job.explanation.pickles[0].offset is None
    assert "at byte 0x1a of archive/data.pkl" in job.explanation.findings[0].sentence


def test_a_pickle_is_chosen_by_its_record(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(legacy_stream(pickled(CALLS_SYSTEM)))

    every = explain(path, with_hash=False)
    (one,) = explain(path, record="keys", with_hash=False).pickles

    assert [pickle.record for pickle in every.pickles] == [
        "magic",
        "protocol",
        "system",
        "object",
        "keys",
    ]
    assert one == every.pickles[-1]
    assert explain(path, record="keys", with_hash=False).findings == every.findings
    with pytest.raises(NoSuchRecord, match="has no pickle 'no', but magic, protocol"):
        explain(path, record="no")


def test_of_many_pickles_those_with_findings_are_explained_and_the_rest_counted(
    tmp_path: Path,
) -> None:
    data = pickled(NONE) * 300 + pickled(CALLS_SYSTEM)

    answer = explained(tmp_path, data)

    assert len(answer.pickles) + answer.more_pickles == 301
    assert answer.pickles[-1].record == "pickle 300"
    assert "more pickles, in which nothing was found" in "".join(explanation_text(answer))


def test_a_file_that_changes_while_it_is_listed_has_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickled(CALLS_SYSTEM))

    with explaining(path, with_hash=False) as job:
        path.write_bytes(pickled(NONE))
        with pytest.raises(SourceChanged):
            list(job.listing(0))


# As text


def test_the_text_of_a_small_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(
        pickled(
            short_binunicode("posix") + binput(0) + short_binunicode("system") + STACK_GLOBAL,
            value(("true",)) + REDUCE,
            protocol=4,
        )
    )

    done = audit("explain", path, "--no-hash", "--all")

    assert done.status == 1
    assert done.out.replace(str(path), "a.pkl") == (
        "a.pkl: malicious, coverage complete\n"
        "  pickle, 32 B\n"
        "  malicious CKA101: pickle, byte 30, file offset 30: would call posix.system('true') when "
        "unpickled\n"
        f"    -> would have called posix.system('true') when loaded with pickle.load or {TRUSTING},"
        f" at byte 0x1e of pickle; {REFUSED}\n"
        "\n"
        "== pickle: protocol 4, 9 instructions, 32 bytes from byte 0x0 of the file\n"
        f"  pickle.load unpickles it, and so does {TRUSTING}, the default before torch 2.6\n"
        "  asks for posix.system at byte 0x13\n"
        "    not on the allowlist\n"
        "    resolved: module: literal at byte 0x2; name: literal at byte 0xb\n"
        "    use: REDUCE target\n"
        "    given: ('true')\n"
        "      byte    in file  stack marks\n"
        "         0          0    0>0     0  PROTO 4  ; says which protocol the pickle is written "
        "in\n"
        "         2          2    0>1     0  SHORT_BINUNICODE 'posix'  ; pushes a string\n"
        "         9          9    1>1     0  BINPUT 0  ; 'posix' becomes slot 0\n"
        "         b          b    1>2     0  SHORT_BINUNICODE 'system'  ; pushes a string\n"
        "        13         13    2>1     0  STACK_GLOBAL  ; asks for posix.system (module: "
        "literal at byte 0x2; name: literal at byte 0xb)\n"
        "        14         14    1>2     0  BINUNICODE 'true'  ; pushes a string\n"
        "        1d         1d    2>2     0  TUPLE1  ; makes a tuple of one value\n"
        " >      1e         1e    2>1     0  REDUCE  ; would call posix.system('true') [CKA101]\n"
        "        1f         1f    1>0     0  STOP  ; ends the pickle; the top value is its result\n"
    )


def test_no_string_of_a_file_commands_a_terminal_or_a_ci_runner(tmp_path: Path) -> None:
    wicked = "::error::\x1b[2J\u202e\n::error::"
    pickle = pickled(stack_global(wicked, wicked) + value((wicked,)) + REDUCE, protocol=4)
    entries = torch_entries(pickle, {})
    path = tmp_path / "a.pt"
    path.write_bytes(zip_archive([*entries, ZipEntry(f"{wicked}.pkl", pickled(CALLS_SYSTEM))]))

    for form in ("text", "json"):
        for every in ([], ["--all"]):
            done = audit("explain", path, "-f", form, *every)
            assert done.status == 1
            for line in done.out.splitlines():
                assert line.isprintable()
                assert not line.lstrip().startswith("::")


def test_a_real_checkpoint_of_torch_is_explained_without_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.float16)}, path)

    answer = explain(path)

    assert answer.findings == ()
    assert {row.allowed is not None for row in answer.pickles[0].globals} == {True}
    assert audit("explain", path).status == 0
