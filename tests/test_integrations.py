"""The hook for pre-commit and the action for GitHub: run as those run them, on names that resist.

Neither pre-commit nor a runner is here: a hook's command is put together as pre-commit does it, a
step's script gets its environment as the action's metadata says and is given to the bash that a
runner calls.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from catalogue.benign import FILES
from catalogue.case import BENIGN, STORED
from forge import Raw, called, global_, pickled, storage_id, tensor, torch_zip, value

from ckptaudit import Severity, __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[1]
HOOKS: list[dict[str, Any]] = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
INSTALL, SCAN = ACTION["runs"]["steps"]

CLEAN = torch_zip(BENIGN, STORED)
EVIL = torch_zip(
    pickled(
        value(
            {
                "w": Raw(tensor(storage_id("0", 2), (2,))),
                "x": Raw(called(global_("posix", "system"), "true")),
            }
        )
    ),
    STORED,
)
REVIEW = next(benign.file for benign in FILES if benign.rules == {"CKA108"})
NOTHING = b"<!DOCTYPE html><html></html>"

# Names that a checkout may have, in which whoever passes them on carelessly sees something else.
NAMES = {
    "blanks": "  two  words .pt",
    "line-break": "a\nverdict=clean\n.pt",
    "command-of-the-log": "a\n::error::b.pt",
    "command-of-the-log-first": "::add-mask::clean.pt",
    "group": "##[group]a.pt",
    "option-that-takes-the-file": "--json=x.pt",
    "option-that-hides-the-file": "--sarif=x.pt",
    "threshold": "--fail-on=malicious.pt",
    "help": "-h.pt",
    "end-of-options": "--.pt",
    "substitution": "$(touch canary).pt",
    "grave-accents": "`touch canary`.pt",
    "end-of-a-string": "a'; touch canary; '\".pt",
    "pattern": "[a-z]*?.pt",
    "hidden": ".hidden.pt",
    "letters": "modèle-\u202e.pt",
}
each_name = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a checkout with one clean checkpoint."""
    folder = tmp_path / "check out"
    folder.mkdir()
    (folder / "clean.pt").write_bytes(CLEAN)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder of programs with a python, and the ckptaudit of this checkout."""
    programs = tmp_path / "bin"
    programs.mkdir()
    python = programs / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    launcher = programs / "ckptaudit"
    launcher.write_text(
        f"#!{python}\n"
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from ckptaudit.cli import run\n"
        "run()\n"
    )
    python.chmod(0o755)
    launcher.chmod(0o755)
    return programs


@dataclass(frozen=True)
class Done:
    """What a command or a step left.

    Attributes:
        status: Its exit status.
        log: All it printed.
        outputs: What a runner reads as outputs of the step.
    """

    status: int
    log: str
    outputs: Mapping[str, str]


def run(command: list[str], environment: Mapping[str, str]) -> Done:
    done = subprocess.run(  # noqa: S603 - our own command
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=120,
    )
    return Done(done.returncode, done.stdout.decode(), {})


def assert_only_text(log: str) -> None:
    """No line is a command to a runner but an error of ours, and nothing commands a terminal."""
    for line in log.splitlines():
        assert line.isprintable(), line
        assert not re.search(r"##\w*\[", line), line
        if line.lstrip().startswith("::"):
            assert line.startswith("::error title=ckptaudit::"), line


# The hook


def hook(hook_id: str, installed: Path, *names: str) -> Done:
    """Run a hook on the files *names*: the entry as a shell would split it, args, names."""
    (found,) = (each for each in HOOKS if each["id"] == hook_id)
    command = [*shlex.split(found["entry"]), *found["args"], *names]
    path = f"{installed}{os.pathsep}{os.environ['PATH']}"
    # The first word is looked up as pre-commit does it, in the environment it made for the hook.
    found_command = shutil.which(command[0], path=path)
    assert found_command is not None
    return run([found_command, *command[1:]], {**os.environ, "PATH": path, "PRE_COMMIT": "1"})


@pytest.mark.parametrize("each", HOOKS, ids=lambda each: str(each["id"]))
def test_a_hook_says_all_that_pre_commit_wants_to_know(each: dict[str, Any]) -> None:
    texts = ("id", "name", "description", "entry", "language", "files")
    assert {key: type(each[key]) for key in texts} == dict.fromkeys(texts, str)
    assert set(each) == {*texts, "args", "pass_filenames", "require_serial"}
    assert each["language"] == "python"
    assert (each["pass_filenames"], each["require_serial"]) == (True, True)
    # Names may begin with dashes, and everything behind the entry is in front of them or is one.
    assert each["entry"].startswith("ckptaudit scan ")
    assert each["entry"].endswith(" --")
    assert each["args"] == []


def test_no_two_hooks_have_one_id() -> None:
    assert [each["id"] for each in HOOKS] == ["ckptaudit-scan", "ckptaudit-scan-strict"]


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        *((f"models/a{end}", True) for end in (".ckpt", ".pt", ".pth", ".bin", ".safetensors")),
        *((f"a{end}", True) for end in (".PT", ".pth.tar", ".pkl.gz", ".npz", ".joblib.xz")),
        *((f"a{end}", False) for end in (".py", ".ptx", ".bin.md", ".tar", "", "pt", ".pt/readme")),
    ],
)
def test_a_hook_is_for_checkpoints(name: str, *, chosen: bool) -> None:
    for each in HOOKS:
        assert bool(re.search(each["files"], name)) is chosen


@pytest.mark.parametrize(
    ("hook_id", "data", "status"),
    [
        ("ckptaudit-scan", CLEAN, 0),
        ("ckptaudit-scan", REVIEW, 0),
        ("ckptaudit-scan-strict", CLEAN, 0),
        ("ckptaudit-scan-strict", REVIEW, 1),
        ("ckptaudit-scan", EVIL, 1),
        ("ckptaudit-scan", CLEAN[:-30], 2),
        ("ckptaudit-scan", NOTHING, 2),
    ],
    ids=["clean", "review", "strict-clean", "strict-review", "evil", "cut", "nothing"],
)
def test_a_hook_refuses_what_a_scan_refuses(
    hook_id: str, data: bytes, status: int, checkout: Path, installed: Path
) -> None:
    (checkout / "model.pt").write_bytes(data)

    done = hook(hook_id, installed, "clean.pt", "model.pt")

    assert done.status == status
    assert "model.pt" in done.log


@each_name
def test_no_name_of_a_file_gets_around_a_hook(name: str, checkout: Path, installed: Path) -> None:
    (checkout / name).write_bytes(EVIL)

    done = hook("ckptaudit-scan", installed, name, "clean.pt")

    assert done.status == 1
    assert "CKA101" in done.log
    assert_only_text(done.log)
    assert {path.name for path in checkout.iterdir()} == {name, "clean.pt"}


# The action


def step(
    which: dict[str, Any],
    runner: Path,
    inputs: Mapping[str, str],
    *,
    programs: Path | None = None,
    more: Mapping[str, str] | None = None,
) -> Done:
    """Run a step of the action as a runner would.

    Args:
        which: The step.
        runner: Where the runner keeps its files.
        inputs: What a workflow gives; the other inputs are what they are by default.
        programs: What the first step says where it installed.
        more: What else the environment has.
    """
    assert which["shell"] == "bash"
    runner.mkdir(exist_ok=True)
    values = {name: str(each.get("default", "")) for name, each in ACTION["inputs"].items()}
    known = {f"inputs.{name}": text for name, text in {**values, **inputs}.items()}
    known["steps.install.outputs.bin"] = str(programs)
    environment = {
        "PATH": os.environ["PATH"],
        "RUNNER_TEMP": str(runner),
        "GITHUB_OUTPUT": str(runner / "output"),
        "GITHUB_STEP_SUMMARY": str(runner / "summary"),
        "GITHUB_ACTION_PATH": str(ROOT),
        **{name: evaluated(text, known) for name, text in which["env"].items()},
        **(more or {}),
    }
    (runner / "output").write_bytes(b"")
    (runner / "script.sh").write_text(which["run"])
    done = run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", f"{runner}/script.sh"], environment
    )
    return Done(done.status, done.log, outputs_in((runner / "output").read_text()))


def evaluated(text: str, known: Mapping[str, str]) -> str:
    """What a runner makes of a value of the metadata: here always one expression, one name."""
    match = re.fullmatch(r"\$\{\{ ([a-z.-]+) \}\}", text)
    assert match, text
    return known[match[1]]


def outputs_in(text: str) -> dict[str, str]:
    """What a runner reads out of the file that a step writes its outputs to."""
    outputs = {}
    lines = iter(text.splitlines())
    for line in lines:
        multiline = re.fullmatch("([^=]+?)<<(.+)", line)
        if multiline:
            name, end = multiline.groups()
            outputs[name] = "\n".join(takewhile(end.__ne__, lines))
        else:
            name, _, outputs[name] = line.partition("=")
    return outputs


def scan(runner: Path, installed: Path, **inputs: str) -> Done:
    given = {name.replace("_", "-"): text for name, text in inputs.items()}
    return step(SCAN, runner, given, programs=installed)


def artifacts(sarif: str) -> list[str]:
    (run_,) = json.loads(Path(sarif).read_text())["runs"]
    return [each["location"]["uri"] for each in run_["artifacts"] if "parentIndex" not in each]


def test_the_action_says_all_that_github_wants_to_know() -> None:
    assert set(ACTION) == {"name", "description", "inputs", "outputs", "runs"}
    assert ACTION["runs"]["using"] == "composite"
    assert ACTION["inputs"]["paths"]["required"] is True
    assert ACTION["inputs"]["fail-on"]["default"] == "suspicious"
    for each in (*ACTION["inputs"].values(), *ACTION["outputs"].values()):
        assert each["description"]
    for name, each in ACTION["outputs"].items():
        assert re.fullmatch(
            rf"\$\{{\{{ steps\.(scan|install)\.outputs\.{name} \}}\}}", each["value"]
        )


def test_no_step_has_an_expression_in_its_script_or_uses_another_action() -> None:
    """What an expression stands for is written into a script before bash reads it."""
    for each in ACTION["runs"]["steps"]:
        assert set(each) == {"name", "id", "shell", "env", "run"}
        assert "${{" not in each["run"]
        for text in each["env"].values():
            assert re.fullmatch(r"\$\{\{ (inputs|steps\.install\.outputs)\.[a-z-]+ \}\}", text)


@pytest.mark.parametrize(
    ("data", "fail_on", "status", "verdict"),
    [
        (CLEAN, "suspicious", 0, "clean"),
        (REVIEW, "suspicious", 0, "review"),
        (REVIEW, "review", 1, "review"),
        (EVIL, "suspicious", 1, "malicious"),
        (CLEAN[:-30], "malicious", 2, "none"),
        (NOTHING, "suspicious", 2, "none"),
        (CLEAN, "clean", 2, "none"),
    ],
    ids=["clean", "review", "strict", "evil", "cut", "nothing", "no-such-threshold"],
)
def test_the_exit_status_of_the_scan_is_that_of_the_action(
    data: bytes,
    fail_on: str,
    status: int,
    verdict: str,
    tmp_path: Path,
    checkout: Path,
    installed: Path,
) -> None:
    (checkout / "model.pt").write_bytes(data)

    done = scan(tmp_path / "runner", installed, paths="clean.pt\nmodel.pt\n", fail_on=fail_on)

    assert (done.status, done.outputs["status"]) == (status, str(status))
    assert done.outputs["verdict"] == verdict
    assert_only_text(done.log)
    if fail_on == "clean":
        assert done.outputs["sarif"] == ""
        return
    assert artifacts(done.outputs["sarif"]) == ["clean.pt", "model.pt"]
    assert (tmp_path / "runner" / "summary").read_text().startswith("# ckptaudit scan")
    assert {path.name for path in checkout.iterdir()} == {"clean.pt", "model.pt"}


def test_verdicts_are_on_the_ladder_of_the_package() -> None:
    ladder = re.search(r"ladder = (\[.*\])", SCAN["run"])
    assert ladder
    assert json.loads(ladder[1]) == [each.value for each in Severity]


@each_name
def test_no_name_of_a_file_gets_around_the_action(
    name: str, tmp_path: Path, checkout: Path, installed: Path
) -> None:
    """Found by a pattern, for nobody writes such a name into a workflow."""
    (checkout / "below").mkdir()
    (checkout / "below" / name).write_bytes(EVIL)
    (checkout / name).write_bytes(EVIL)

    done = scan(tmp_path / "runner", installed, paths="**/*.pt")

    assert (done.status, done.outputs["verdict"]) == (1, "malicious")
    assert len(artifacts(done.outputs["sarif"])) == 3
    assert_only_text(done.log)
    assert {path.name for path in checkout.iterdir()} == {name, "clean.pt", "below"}


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        ("*.pt", ["clean.pt"]),
        ("b*/*", ["below/.hidden", "below/x.ckpt"]),
        ("below/[xy].????", ["below/x.ckpt"]),
        ("**/*", ["below/.hidden", "below/x.ckpt", "clean.pt"]),
        ("clean.pt\n*.pt\n", ["clean.pt", "clean.pt"]),
    ],
)
def test_a_pattern_is_for_files_hidden_ones_too_and_not_for_folders(
    paths: str, found: list[str], tmp_path: Path, checkout: Path, installed: Path
) -> None:
    (checkout / "below" / "folder.pt").mkdir(parents=True)
    for name in ("below/x.ckpt", "below/.hidden"):
        (checkout / name).write_bytes(CLEAN)

    done = scan(tmp_path / "runner", installed, paths=paths)

    assert done.status == 0
    assert sorted(artifacts(done.outputs["sarif"])) == found


@pytest.mark.parametrize("name", [name for name in NAMES.values() if "\n" not in name])
def test_a_name_in_the_input_is_a_name(
    name: str, tmp_path: Path, checkout: Path, installed: Path
) -> None:
    (checkout / name).write_bytes(EVIL)

    done = scan(tmp_path / "runner", installed, paths=f"clean.pt\n\n{name}")

    assert (done.status, done.outputs["verdict"]) == (1, "malicious")
    assert not (checkout / "canary").exists()


def test_a_file_called_like_a_pattern_hides_no_other(
    tmp_path: Path, checkout: Path, installed: Path
) -> None:
    """Else whoever may add a file could take all others out of the scan."""
    (checkout / "*.pt").write_bytes(CLEAN)
    (checkout / "evil.pt").write_bytes(EVIL)

    done = scan(tmp_path / "runner", installed, paths="*.pt")

    assert done.status == 1
    assert sorted(artifacts(done.outputs["sarif"])) == ["%2A.pt", "clean.pt", "evil.pt"]


@pytest.mark.parametrize(
    "paths",
    ["", "\n\n", "none.pt", "*.ckpt", "clean.pt\nnone/*.pt", "."],
    ids=["empty", "blank", "missing", "no-match", "one-without-match", "folder"],
)
def test_what_is_not_there_is_no_answer(
    paths: str, tmp_path: Path, checkout: Path, installed: Path
) -> None:
    """A scan of nothing is not a good one."""
    assert checkout.exists()

    done = scan(tmp_path / "runner", installed, paths=paths)

    assert done.status == 2
    assert done.outputs.get("verdict", "none") == "none"
    assert_only_text(done.log)


INJECTIONS = {
    "substitution": "$(touch canary)",
    "grave-accents": "`touch canary`",
    "end-of-a-string": "\"; touch canary; \"'; touch canary; '",
    "line-break": "x\ntouch canary",
    "expression": "${{ github.token }}",
    "output": "x\nverdict=clean\nstatus=0",
    "option": "--help",
    "log": "::stop-commands::x",
}


@pytest.mark.parametrize("text", INJECTIONS.values(), ids=INJECTIONS)
@pytest.mark.parametrize("name", ["paths", "fail_on", "sarif", "version"])
def test_no_input_is_code(
    name: str, text: str, tmp_path: Path, checkout: Path, installed: Path
) -> None:
    (checkout / "evil.pt").write_bytes(EVIL)
    inputs = {"paths": "evil.pt", name: text}

    done = scan(tmp_path / "runner", installed, **inputs)

    assert not (checkout / "canary").exists()
    assert done.status == (1 if name in {"sarif", "version"} else 2)
    assert done.outputs["verdict"] == ("malicious" if done.status == 1 else "none")
    assert done.outputs["status"] == str(done.status)
    assert_only_text(done.log)
    if name == "sarif":
        assert done.outputs["sarif"] == text
        assert artifacts(text) == ["evil.pt"]


def test_an_earlier_report_is_not_taken_for_this_one(
    tmp_path: Path, checkout: Path, installed: Path
) -> None:
    runner = tmp_path / "runner"
    assert scan(runner, installed, paths="clean.pt", sarif="out.sarif").outputs["sarif"]
    os.utime(checkout / "out.sarif", (0, 0))

    done = scan(runner, installed, paths="clean.pt", sarif="out.sarif", fail_on="no-such")

    assert (done.status, done.outputs["sarif"]) == (2, "")


@pytest.mark.parametrize(
    "trouble",
    [{"RUNNER_TEMP": "/no/such/folder"}, {"GITHUB_OUTPUT": "/no/such/file"}, {"BIN": "/no/such"}],
    ids=["no-work-folder", "no-outputs", "nothing-installed"],
)
@pytest.mark.parametrize("name", ["clean.pt", "evil.pt"])
def test_trouble_of_the_runner_is_no_answer(
    name: str, trouble: dict[str, str], tmp_path: Path, checkout: Path, installed: Path
) -> None:
    """Neither 0 nor 1, which would say something of the checkpoint."""
    (checkout / "evil.pt").write_bytes(EVIL)

    done = step(SCAN, tmp_path / "runner", {"paths": name}, programs=installed, more=trouble)

    assert done.status not in {0, 1}
    assert done.outputs.get("verdict", "none") == "none"


def test_a_runner_without_summaries_is_none_the_worse(
    tmp_path: Path, checkout: Path, installed: Path
) -> None:
    assert checkout.exists()
    without = {"GITHUB_STEP_SUMMARY": ""}

    done = step(SCAN, tmp_path / "runner", {"paths": "clean.pt"}, programs=installed, more=without)

    assert (done.status, done.outputs["verdict"]) == (0, "clean")


# Where it is installed

# Builds a wheel of one module, as pip asks for it: nothing has to be fetched for that.
BACKEND = """
import zipfile

FILES = {
    "ckptaudit.py": "__version__ = '{version}'",
    "ckptaudit-{version}.dist-info/METADATA":
        "Metadata-Version: 2.1\\nName: ckptaudit\\nVersion: {version}\\n",
    "ckptaudit-{version}.dist-info/WHEEL":
        "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    "ckptaudit-{version}.dist-info/RECORD": "",
}


def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "ckptaudit-{version}-py3-none-any.whl"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        for path, text in FILES.items():
            wheel.writestr(path, text)
    return name
"""


@pytest.fixture
def action_path(tmp_path: Path) -> Path:
    """Where a runner has put the action: a package that is built without the network."""
    folder = tmp_path / "the action's own folder"
    folder.mkdir()
    (folder / "backend.py").write_text(BACKEND.replace("{version}", __version__))
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "ckptaudit"\nversion = "{__version__}"\n'
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    return folder


def poison(folder: Path) -> None:
    """Put modules into *folder* that leave a mark if they are imported."""
    mark = f"open({str(folder / 'canary')!r}, 'w').close()\n"
    for name in (
        "venv",
        "pip",
        "ensurepip",
        "sitecustomize",
        "json",
        "click",
        "ckptaudit",
        "msgspec",
    ):
        (folder / f"{name}.py").write_text(mark)
    done = run([sys.executable, "-c", "import ckptaudit"], {"PYTHONPATH": str(folder)})
    assert (done.status, (folder / "canary").exists()) == (0, True), "the trap is no dud"
    (folder / "canary").unlink()


def test_nothing_in_the_checkout_is_imported(
    tmp_path: Path, checkout: Path, installed: Path, action_path: Path
) -> None:
    """It is the working directory, and its pull request may be anybody's."""
    poison(checkout)
    where = {"GITHUB_ACTION_PATH": str(action_path), "PYTHONPATH": str(checkout)}

    done = step(INSTALL, tmp_path / "runner", {"version": f"v{__version__}"}, more=where)
    scanned = step(SCAN, tmp_path / "runner", {"paths": "clean.pt"}, programs=installed, more=where)

    assert (done.status, scanned.status) == (0, 0), done.log + scanned.log
    assert done.outputs["version"] == __version__
    assert (Path(done.outputs["bin"]) / "python").exists()
    assert not (checkout / "canary").exists()
    assert not list(action_path.glob("build*"))


def test_another_version_than_the_one_expected_is_no_answer(
    tmp_path: Path, checkout: Path, action_path: Path
) -> None:
    assert checkout.exists()

    done = step(
        INSTALL,
        tmp_path / "runner",
        {"version": "::stop-commands::x"},
        more={"GITHUB_ACTION_PATH": str(action_path)},
    )

    assert (done.status, done.outputs) == (2, {})
    assert f"::error title=ckptaudit::this is version {__version__}" in done.log
    assert_only_text(done.log)


@pytest.mark.parametrize("python", ["exit 1", "exit 127"], ids=["too-old", "broken"])
def test_without_a_python_there_is_no_answer(python: str, tmp_path: Path, checkout: Path) -> None:
    assert checkout.exists()
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "python3").write_text(f"#!/bin/sh\n{python}\n")
    (programs / "python3").chmod(0o755)

    done = step(INSTALL, tmp_path / "runner", {}, more={"PATH": f"{programs}:{os.environ['PATH']}"})

    assert (done.status, done.outputs) == (2, {})
    assert "needs python3 on the PATH, 3.10 or newer" in done.log


def test_what_cannot_be_installed_is_no_answer(tmp_path: Path, checkout: Path) -> None:
    """The exit status of pip is 1, which would be a bad answer about the checkpoints."""
    nowhere = {"GITHUB_ACTION_PATH": str(checkout / "nowhere")}

    done = step(INSTALL, tmp_path / "runner", {}, more=nowhere)

    assert done.status == 2
    assert "::error title=ckptaudit::cannot be installed" in done.log
