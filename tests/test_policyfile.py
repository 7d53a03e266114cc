"""The file that a policy is in: what is refused, when it applies, and who is told."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import pytest
import toml
from commands import Run, assert_one_clear_line, audit, names_in
from forge import (
    BUILD,
    CALLS_SYSTEM,
    EMPTY_TUPLE,
    NEWOBJ,
    TUPLE2,
    call,
    global_,
    pickled,
    torch_zip,
    value,
)

import ckptaudit
from ckptaudit.errors import CkptauditError, PolicyInvalid
from ckptaudit.policy import Policy, parse_policy

DOCS = Path(__file__).parents[1] / "docs" / "policy.md"
TODAY = date(2026, 11, 25)
SHA256 = "0123456789abcdef" * 4
PAIR = 'module = "mylib.ema", name = "Averager"'
FILE = f'sha256 = "{SHA256}", rule = "CKA102"'
SAME_FILE = f'sha256 = "{SHA256.upper()}", rule = "CKA102"'
WHY = 'justification = "ours"'
# Far enough away for these tests to outlive whoever reads them.
UNTIL = "expires = 2999-12-31"
OBJECT = global_("mylib.ema", "Averager") + EMPTY_TUPLE + NEWOBJ + value({"decay": 1}) + BUILD


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a file of our own class, one that runs a command, one cut short."""
    monkeypatch.chdir(tmp_path)
    Path("model.pt").write_bytes(torch_zip(pickled(OBJECT)))
    Path("bad.pt").write_bytes(torch_zip(pickled(OBJECT, CALLS_SYSTEM, TUPLE2)))
    Path("cut.pt").write_bytes(torch_zip(pickled(OBJECT)[:-1]))
    return tmp_path


def policy_of(*entries: str, name: str = "policy.toml") -> str:
    text = "allow = [\n" + "".join(f"  {{ {entry} }},\n" for entry in entries) + "]\n"
    if name == "pyproject.toml":
        text = f"[project]\nname = 'x'\n[tool.ckptaudit]\n{text}"
    Path(name).write_text(text, encoding="utf-8")
    return name


def pair(*, module: str = "mylib.ema", name: str = "Averager", until: str = UNTIL) -> str:
    return f'module = "{module}", name = "{name}", {WHY}, {until}'


def in_file(path: str, rule: str) -> str:
    (scanned,) = audit("scan", path, "-f", "json").files
    return f'sha256 = "{scanned["sha256"]}", rule = "{rule}", {WHY}, {UNTIL}'


def notes(done: Run) -> list[str]:
    assert all(line.startswith("ckptaudit: note: ") for line in done.err.splitlines())
    return done.err.splitlines()


# Strictness

REFUSED = {
    "no-list": ("", "begin with: allow = ["),
    "no-list-but-a-table": ("[allow]\nmodule = 'x'", "begin with: allow = ["),
    "unknown-key-beside-it": ("allow = []\ndeny = []", "has a key deny"),
    "table-of-pyproject": ("[tool.ckptaudit]\nallow = []", "has a key tool"),
    "no-table": ("allow = ['mylib.ema']", "entry 1: is no table"),
    "unknown-key": (f"allow = [{{ {PAIR}, {WHY}, {UNTIL}, why = 1 }}]", "entry 1: has a key why"),
    "both-kinds": (f"allow = [{{ {PAIR}, {FILE}, {WHY}, {UNTIL} }}]", "make two entries of it"),
    "mixed-kinds": (
        f"allow = [{{ module = 'x', sha256 = 'y', {WHY}, {UNTIL} }}]",
        "make two entries of it",
    ),
    "no-kind": (f"allow = [{{ {WHY}, {UNTIL} }}]", "has no module"),
    "no-name": (f"allow = [{{ module = 'x', {WHY}, {UNTIL} }}]", "has no name"),
    "no-rule": (f"allow = [{{ sha256 = '{SHA256}', {WHY}, {UNTIL} }}]", "has no rule"),
    "empty-name": (f"allow = [{{ module = 'x', name = '', {WHY}, {UNTIL} }}]", "empty name"),
    "name-is-no-text": (f"allow = [{{ module = 'x', name = 1, {WHY}, {UNTIL} }}]", "in quotes"),
    "star": (f"allow = [{{ module = 'x', name = '*', {WHY}, {UNTIL} }}]", "a wildcard in name"),
    "star-in-module": (
        f"allow = [{{ module = 'torch.*', name = 'x', {WHY}, {UNTIL} }}]",
        "a wildcard in module",
    ),
    "question-mark": (f"allow = [{{ module = 'x', name = 'a?', {WHY}, {UNTIL} }}]", "a wildcard"),
    "brackets": (f"allow = [{{ module = 'x', name = '[ab]', {WHY}, {UNTIL} }}]", "a wildcard"),
    "endless-name": (
        f"allow = [{{ module = 'x', name = '{'y' * 201}', {WHY}, {UNTIL} }}]",
        "201 characters",
    ),
    "no-justification": (f"allow = [{{ {PAIR}, {UNTIL} }}]", "has no justification"),
    "empty-justification": (
        f'allow = [{{ {PAIR}, justification = "", {UNTIL} }}]',
        "an empty justification",
    ),
    "blank-justification": (
        f'allow = [{{ {PAIR}, justification = " \\n", {UNTIL} }}]',
        "an empty justification",
    ),
    "justification-is-no-text": (f"allow = [{{ {PAIR}, justification = 1, {UNTIL} }}]", "no text"),
    "endless-justification": (
        f"allow = [{{ {PAIR}, justification = '{'y' * 1001}', {UNTIL} }}]",
        "1001 characters",
    ),
    "does-not-expire": (f"allow = [{{ {PAIR}, {WHY} }}]", "does not expire"),
    "date-in-quotes": (
        f"allow = [{{ {PAIR}, {WHY}, expires = '2027-02-25' }}]",
        "write expires = 2027-02-25, without quotes",
    ),
    "date-as-json-proposes-it": (f"allow = [{{ {PAIR}, {WHY}, expires = '' }}]", "no date in"),
    "date-and-time": (
        f"allow = [{{ {PAIR}, {WHY}, expires = 2027-02-25T00:00:00 }}]",
        "no date in expires",
    ),
    "time": (f"allow = [{{ {PAIR}, {WHY}, expires = 00:00:00 }}]", "no date in expires"),
    "never": (f"allow = [{{ {PAIR}, {WHY}, expires = true }}]", "no date in expires"),
    "no-such-date": (f"allow = [{{ {PAIR}, {WHY}, expires = 2027-02-30 }}]", "is no TOML"),
    "unknown-rule": (
        f"allow = [{{ sha256 = '{SHA256}', rule = 'CKA999', {WHY}, {UNTIL} }}]",
        "`ckptaudit rules` lists",
    ),
    "rule-in-lower-case": (
        f"allow = [{{ sha256 = '{SHA256}', rule = 'cka102', {WHY}, {UNTIL} }}]",
        "`ckptaudit rules` lists",
    ),
    "short-hash": (
        f"allow = [{{ sha256 = '{SHA256[1:]}', rule = 'CKA102', {WHY}, {UNTIL} }}]",
        "64 hexadecimal digits",
    ),
    "hash-of-letters": (
        f"allow = [{{ sha256 = '{'x' * 64}', rule = 'CKA102', {WHY}, {UNTIL} }}]",
        "64 hexadecimal digits",
    ),
    "what-was-not-read": (
        f"allow = [{{ sha256 = '{SHA256}', rule = 'CKA208', {WHY}, {UNTIL} }}]",
        "which nobody can have looked at",
    ),
    "weights": (
        f"allow = [{{ sha256 = '{SHA256}', rule = 'CKA301', {WHY}, {UNTIL} }}]",
        "which need no permission",
    ),
    "duplicate-pair": (
        f"allow = [{{ {PAIR}, {WHY}, {UNTIL} }}, {{ {PAIR}, {WHY}, expires = 2999-12-30 }}]",
        "entry 2: permits mylib.ema.Averager, as entry 1 does",
    ),
    "duplicate-file": (
        f"allow = [{{ {FILE}, {WHY}, {UNTIL} }}, {{ {SAME_FILE}, {WHY}, {UNTIL} }}]",
        "as entry 1 does",
    ),
    "second-entry": (f"allow = [{{ {PAIR}, {WHY}, {UNTIL} }}, {{ {FILE}, {UNTIL} }}]", "entry 2: "),
    "no-toml": ("allow = [", "is no TOML"),
    "deep": ("allow = " + "[\n" * 100_000, "is no TOML|nests too deep"),
    "key-of-ever-so-many-parts": ("a." * 400_000 + "a = 1", "line 1 has 400000 dots"),
    "huge": ("#" * 1_000_001, "at most 1000000"),
    "hostile-key": ("allow = []\n'\\x1b[2J' = 1", "has a key"),
}


@pytest.mark.parametrize(("text", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_policy_is_refused_in_one_line_before_any_work(
    text: str, words: str, here: Path
) -> None:
    Path("policy.toml").write_text(text, encoding="utf-8")

    done = audit("scan", here / "model.pt", "--policy", "policy.toml")

    assert_one_clear_line(done, "policy.toml: ")
    assert re.search("|".join(map(re.escape, words.split("|"))), done.err)
    with pytest.raises(PolicyInvalid):
        ckptaudit.read_policy("policy.toml")


@pytest.mark.parametrize("verb", ["scan", "explain", "convert"])
def test_a_policy_that_cannot_be_read_is_no_answer(verb: str, here: Path) -> None:
    Path("latin.toml").write_bytes("# é\nallow = []".encode("latin-1"))

    for name, words in {
        "none.toml": "no such file",
        ".": "is a directory; name a file in it",
        "/dev/null": "not a regular file",
        "latin.toml": "is no text in UTF-8 (byte 2)",
    }.items():
        assert_one_clear_line(audit(verb, here / "model.pt", "--policy", name), name, words)
        with pytest.raises(CkptauditError):
            ckptaudit.read_policy(name)
    assert "model.safetensors" not in names_in(here)


def test_a_key_of_many_parts_does_not_take_minutes(here: Path) -> None:
    """A parser that copies a key for each of its parts takes time by the square of them."""
    line = "a." * 299 + "a"
    text = "\n".join(f"{line}{number} = 1" for number in range(1600))
    (here / "policy.toml").write_text(text, encoding="utf-8")

    with pytest.raises(PolicyInvalid):
        ckptaudit.read_policy("policy.toml")


def test_an_empty_policy_is_one(here: Path) -> None:
    assert parse_policy({"allow": []}, TODAY) == Policy()
    done = audit("scan", here / "model.pt", "--policy", policy_of())
    assert (done.status, done.err) == (1, "")


def test_every_entry_is_validated_though_it_has_expired(here: Path) -> None:
    bad = f"{PAIR}, justification = '', expires = 2000-01-01"

    assert_one_clear_line(audit("scan", here / "model.pt", "--policy", policy_of(bad)), "entry 1")


# Applying it


@pytest.mark.usefixtures("here")
def test_the_pair_is_what_the_user_named_and_the_rest_stays() -> None:
    policy = policy_of(pair())

    for verb in ("scan", "explain", "convert"):
        assert audit(verb, "model.pt").status == 1
        assert audit(verb, "model.pt", "--policy", policy).status == 0
        assert audit(verb, "bad.pt", "--policy", policy).status == 1
    (scanned,) = audit("scan", "bad.pt", "--policy", policy, "-f", "json").files
    assert scanned["verdict"] == "malicious"
    assert [each["rule"] for each in scanned["findings"]] == ["CKA101"]
    assert [each["finding"]["rule"] for each in scanned["permitted"]] == ["CKA102"]


def test_a_gap_is_no_answer_whatever_is_permitted(here: Path) -> None:
    policy = policy_of(pair(), *(in_file("cut.pt", rule) for rule in ("CKA102", "CKA109")))

    done = audit("scan", here / "cut.pt", "--policy", policy, "-f", "json")

    (scanned,) = done.files
    assert done.status == 2
    assert not scanned["coverage"]["complete"]
    assert [each["rule"] for each in scanned["findings"]] == ["CKA208"]
    assert audit("convert", "cut.pt", "--policy", policy).status == 2


@pytest.mark.usefixtures("here")
def test_a_rule_is_permitted_in_the_file_with_that_hash_alone() -> None:
    policy = policy_of(in_file("bad.pt", "CKA101"), in_file("bad.pt", "CKA102"))

    for verb in ("scan", "explain", "convert"):
        assert audit(verb, "bad.pt", "--policy", policy).status == 0
        assert audit(verb, "model.pt", "--policy", policy).status == 1
    Path("bad.pt").write_bytes(torch_zip(pickled(OBJECT, CALLS_SYSTEM, TUPLE2, protocol=3)))
    assert audit("scan", "bad.pt", "--policy", policy).status == 1


def test_without_a_hash_no_file_is_permitted_and_that_is_said(here: Path) -> None:
    policy = policy_of(in_file("model.pt", "CKA102"))

    for verb in ("scan", "explain", "convert"):
        done = audit(verb, here / "model.pt", "--policy", policy, "--no-hash")

        assert done.status == 1
        assert "policy.toml: --no-hash leaves out the SHA-256 for entry 1" in done.err
        assert "permitted nothing" not in done.err


def test_a_dry_run_is_permitted_what_the_conversion_would_be(here: Path) -> None:
    for entry in (pair(), in_file("model.pt", "CKA102")):
        policy = policy_of(entry)
        assert audit("convert", "model.pt", "--dry-run", "--policy", policy).status == 0
    assert audit("convert", "bad.pt", "--dry-run", "--policy", policy).status == 1
    assert names_in(here) == {"model.pt", "bad.pt", "cut.pt", "policy.toml"}


def test_a_conversion_accounts_for_what_was_permitted(here: Path) -> None:
    audit("convert", "model.pt", "--policy", policy_of(pair()))

    (file,) = json.loads((here / "model.report.json").read_bytes())["files"]

    (permitted,) = file["permitted"]
    assert permitted["justification"] == "ours"
    assert (file["findings"], file["source"]["verdict"]) == ([], "clean")


def test_a_permission_holds_on_its_last_day_and_not_on_the_next(here: Path) -> None:
    path = here / policy_of(pair(until="expires = 2026-11-25"))

    last, next_ = (
        ckptaudit.read_policy(path, today=TODAY + timedelta(days=days)) for days in (0, 1)
    )

    assert ckptaudit.scan("model.pt", policy=last).verdict == "clean"
    assert ckptaudit.scan("model.pt", policy=next_).verdict == "suspicious"
    assert [each.expires for each in next_.expired] == [TODAY]


def test_what_has_expired_is_said(here: Path) -> None:
    policy = policy_of(pair(until="expires = 2020-02-29"))

    done = audit("scan", here / "model.pt", "--policy", policy)

    assert done.status == 1
    (note,) = notes(done)
    assert "policy.toml: entry 1 (mylib.ema.Averager) expired on 2020-02-29 and is not" in note


def test_what_permitted_nothing_in_the_whole_run_is_said_once(here: Path) -> None:
    policy = policy_of(pair(), pair(name="Other"), f"{FILE}, {WHY}, {UNTIL}")

    done = audit("scan", here / "model.pt", here / "bad.pt", "--policy", policy)

    assert notes(done) == [
        "ckptaudit: note: policy.toml: entries 2, 3 permitted nothing in this run"
    ]


def test_a_note_is_short_however_many_entries_it_is_about(here: Path) -> None:
    policy = policy_of(*(pair(name=f"Other{number}") for number in range(500)))

    (note,) = notes(audit("scan", here / "model.pt", "--policy", policy))

    assert "entries 1, 2, 3, " in note
    assert "20 and 480 more permitted nothing" in note


def test_nobody_can_say_what_was_of_no_use_where_a_file_has_no_answer(here: Path) -> None:
    done = audit("scan", here / "none.pt", "--policy", policy_of(pair()))

    assert "permitted nothing" not in done.err


def test_where_all_was_done_before_nothing_was_of_no_use(here: Path) -> None:
    policy = policy_of(pair())
    audit("convert", here / "model.pt", "--policy", policy)

    done = audit("convert", here / "model.pt", "--policy", policy, "--if-exists", "skip")

    assert "skipped" in done.err
    assert "permitted nothing" not in done.err


# Never found


def test_a_policy_beside_the_file_is_not_applied(here: Path) -> None:
    (here / "download").mkdir()
    Path("download/model.pt").write_bytes(Path("model.pt").read_bytes())
    policy_of(pair(), name="download/ckptaudit.toml")
    policy_of(pair(), name="pyproject.toml")
    Path("pyproject.toml").rename("download/pyproject.toml")

    done = audit("scan", "download/model.pt")

    assert (done.status, done.err) == (1, "")


@pytest.mark.parametrize("name", ["ckptaudit.toml", "pyproject.toml"])
def test_a_policy_in_the_working_directory_is_told_and_not_applied(name: str, here: Path) -> None:
    policy_of(pair(), name=name)

    for verb in ("scan", "explain", "convert"):
        done = audit(verb, here / "model.pt")

        assert done.status == 1
        note = f"{name} is here but was not applied; --policy {name} applies it"
        assert f"ckptaudit: note: {note}\n" in done.err
        assert audit(verb, here / "model.pt", "--policy", name).status == 0


def test_a_project_without_a_policy_is_no_news(here: Path) -> None:
    Path("pyproject.toml").write_text("[project]\nname = 'x'\n", encoding="utf-8")

    assert audit("scan", here / "model.pt").err == ""
    done = audit("scan", here / "model.pt", "--policy", "pyproject.toml")
    assert_one_clear_line(done, "has no table [tool.ckptaudit]")


def test_what_merely_is_called_like_a_policy_is_passed_over(here: Path) -> None:
    Path("ckptaudit.toml").mkdir()
    Path("pyproject.toml").symlink_to("/dev/full")

    assert audit("scan", here / "model.pt").err == ""


# Formats


def permitted_as(format_: str, justification: str = "ours") -> str:
    policy = policy_of(f"{PAIR}, justification = {json.dumps(justification)}, {UNTIL}")
    return audit("scan", "model.pt", "--policy", policy, "-f", format_).out


@pytest.mark.usefixtures("here")
def test_what_is_permitted_is_told_apart_in_every_format() -> None:
    (scanned,) = json.loads(permitted_as("json"))["files"]
    (permitted,) = scanned["permitted"]
    message = permitted["finding"]["message"]

    assert (scanned["verdict"], scanned["findings"], scanned["to_permit"]) == ("clean", [], [])
    assert (permitted["entry"], permitted["expires"]) == (1, "2999-12-31")
    text = permitted_as("text")
    assert "  permitted suspicious CKA102: archive/data.pkl, byte " in text
    assert f"{message} (until 2999-12-31: ours)" in text
    assert json.loads(permitted_as("jsonl"))["files"] == [scanned]
    markdown = permitted_as("md")
    assert "Permitted:\n\n* `suspicious CKA102: " in markdown
    assert "Findings:" not in markdown
    explained = audit("explain", "model.pt", "--policy", "policy.toml")
    assert f"{message} (until 2999-12-31: ours)" in explained.out
    audit("scan", "model.pt", "--policy", "policy.toml", "--sbom", "bom.json")
    bom = json.loads(Path("bom.json").read_bytes())
    assert bom["vulnerabilities"] == []
    told = {each["name"]: each["value"] for each in bom["components"][0]["properties"]}
    assert message in told["ckptaudit:permitted"]


@pytest.mark.usefixtures("here")
def test_a_permitted_result_is_suppressed_in_sarif() -> None:
    (run,) = json.loads(permitted_as("sarif"))["runs"]

    (result,) = run["results"]
    assert result["suppressions"] == [
        {
            "kind": "external",
            "status": "accepted",
            "justification": "ours (until 2999-12-31)",
        }
    ]
    assert run["invocations"][0]["exitCode"] == 0


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("format_", ["text", "md", "sarif", "json"])
def test_a_justification_is_escaped_as_everything_else(format_: str) -> None:
    out = permitted_as(format_, "a\x1b[2J\u202e\n::error::b")

    assert "\x1b" not in out
    assert "\u202e" not in out
    assert not any(line.lstrip().startswith("::") for line in out.splitlines())


# Lines to add


def lines_in(text: str) -> list[str]:
    return [line.strip().strip("*` ") for line in text.splitlines() if "justification" in line]


def test_the_line_that_is_printed_is_the_one_that_is_needed(here: Path) -> None:
    """Copied from any report, it lacks a reason; with one, the file is clean."""
    today = datetime.now(timezone.utc).date()
    (scanned,) = audit("scan", here / "model.pt", "-f", "json").files
    (undated,) = scanned["to_permit"]
    for format_ in ("text", "md"):
        (line,) = lines_in(audit("scan", here / "model.pt", "-f", format_).out)

        (entry,) = toml.loads(f"allow = [{line}]")["allow"]
        # A day may begin between two lines of this test.
        assert entry["expires"] - today in {timedelta(days=90), timedelta(days=91)}
        assert line == undated.replace('expires = ""', f"expires = {entry['expires']}")
        Path("policy.toml").write_text(f"allow = [\n{line}\n]\n", encoding="utf-8")
        assert_one_clear_line(
            audit("scan", here / "model.pt", "--policy", "policy.toml"), "empty justification"
        )
        filled = line.replace('justification = ""', 'justification = "ours"')
        Path("policy.toml").write_text(f"allow = [\n{filled}\n]\n", encoding="utf-8")
        assert audit("scan", here / "model.pt", "--policy", "policy.toml").status == 0


def test_ten_lines_are_printed_and_the_rest_counted(here: Path) -> None:
    many = (call(f"thing{number}", "run") for number in range(12))
    (here / "many.pt").write_bytes(torch_zip(pickled(b"".join(many), b"t", b"")))

    for format_ in ("text", "md"):
        out = audit("scan", here / "many.pt", "-f", format_).out
        lines = lines_in(out)
        assert len(lines) == 10
        assert lines == sorted(lines, key=lambda line: int(re.findall(r"thing(\d+)", line)[0]))
        assert re.search(r"\.\.\. and \d+ more; see --format json", out)
    (scanned,) = audit("scan", here / "many.pt", "-f", "json").files
    assert sum("thing" in line for line in scanned["to_permit"]) == 12


def test_a_clean_file_is_proposed_nothing(here: Path) -> None:
    (here / "good.pt").write_bytes(torch_zip(pickled(value({}))))

    for format_ in ("text", "md"):
        assert lines_in(audit("scan", here / "good.pt", "-f", format_).out) == []


# The page about it


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.usefixtures("here")
def test_the_example_in_the_docs_does_what_it_says() -> None:
    first, second, _ = map(str.splitlines, blocks("console"))
    (policy,), (code,) = blocks("toml"), blocks("python")
    Path("ckptaudit.toml").write_text(policy, encoding="utf-8")

    for shown, arguments in ((first, []), (second, ["--policy", "ckptaudit.toml"])):
        assert shown[0] == " ".join(["$ ckptaudit scan model.pt", *arguments])
        done = audit("scan", "model.pt", *arguments)
        printed = [*done.out.splitlines(), "$ echo $?", str(done.status)]
        assert [undated(line) for line in printed] == [undated(line) for line in shown[1:]]
    ran = subprocess.run(  # noqa: S603 - our own page
        [sys.executable, "-c", f"import ckptaudit\n{code}\nprint(result.verdict.value)"],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    assert ran.stdout == "clean\n"


def undated(line: str) -> str:
    """The line but for the day on which it was printed."""
    return re.sub(r"(?<=expires = )[0-9-]{10}", "DAY", line)
