"""Fuzz every verb that reads a file, guided by coverage (atheris, libFuzzer inside).

An input is a file.  It is scanned, inspected, explained and planned (``convert --dry-run``),
from memory, and nothing is executed.  A finding is

* an exception that is none of ours;
* more than `SECONDS` of processor time, or more than `MEGABYTES` beyond what earlier inputs took;
* a file of which some other reader would unpickle a call of the name that hostile samples
  call, and that is not malicious here, or has no answer;
* a clean file in which some other reader would be asked for a name that is not in the answer.

Other readers are those of ``tests/readers.py``, where it says what the witness can and cannot
see.  The corpus begins with the samples and the catalogue of the tests.

    pip install atheris coverage pytest     # Linux, Python 3.11 to 3.13
    python scripts/fuzz.py --seconds 1800 --report docs/fuzzing.md

Exit status: 0 nothing was found, 1 something was, 2 it could not run.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import lzma
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

# Nothing of this imports the package, which the fuzzer wants to see imported.
from forge import ZipEntry, zip_archive  # noqa: E402
from readers import BROKEN, asked_by, pickles_in  # noqa: E402
from samples import HONEST, HOSTILE, HOSTILE_FILES  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType

SECONDS = 10
MEGABYTES = 256
LARGEST = 8192  # bytes of an input
# What a hostile file may be made of, so that it need not be found byte by byte.
TOKENS = [
    b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\7\10", b"\x80\x02", b"\x80\x04",
    b"\x95\x08\0\0\0\0\0\0\0", b"cposix\nsystem\n", b"X\x04\0\0\0true\x85R", b"archive/data.pkl",
    b"\x93NUMPY\1\0", b"ustar\x0000", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0", b"\x78\x9c",
    b"}(X\1\0\0\0w", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n)R",
    b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"storage", b"|O",
]  # fmt: skip


class TooSlow(BaseException):
    """Raised by the alarm; no ``except`` of the package may catch it."""


@dataclass
class Found:
    """What is wrong with an input.

    Attributes:
        kind: What it violates.
        detail: Where, in one line; findings of one kind and detail are the same one.
        trace: A traceback, if there is one.
    """

    kind: str
    detail: str
    trace: str = ""


class Target:
    """Runs the verbs over one input after the other; `ckptaudit` must be imported by then."""

    def __init__(self) -> None:
        from ckptaudit.errors import CkptauditError  # noqa: PLC0415 - instrumented before
        from ckptaudit.jobs.convert import convert  # noqa: PLC0415 - the same
        from ckptaudit.jobs.explain import explain  # noqa: PLC0415 - the same
        from ckptaudit.jobs.inspect import inspect  # noqa: PLC0415 - the same
        from ckptaudit.jobs.scan import scan  # noqa: PLC0415 - the same

        self.errors = CkptauditError
        self.scan = scan
        # Never written.
        out = Path(tempfile.gettempdir(), "fuzz-planned.safetensors")
        self.verbs: list[Callable[[str], object]] = [
            lambda path: inspect(path, with_hash=False),
            lambda path: explain(path, with_hash=False),
            lambda path: convert(path, out, with_hash=False, dry_run=True, allow_unsafe=True),
        ]
        self.peak = _peak()
        signal.signal(signal.SIGVTALRM, self._ring)

    def __call__(self, data: bytes) -> Found | None:
        """What is wrong with *data*, or None."""
        file = os.memfd_create("input")
        try:
            os.write(file, data)
            found = self._watched(f"/proc/self/fd/{file}", data)
        finally:
            os.close(file)
        peak = _peak()
        grown, self.peak = peak - self.peak, peak
        if found is None and grown > MEGABYTES << 10:
            found = Found("memory", f"{grown >> 10} MB more than any input before")
        return found

    def _watched(self, path: str, data: bytes) -> Found | None:
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            found = self._lie(path, data)
            for verb in self.verbs:
                with suppress(self.errors):
                    verb(path)
        except TooSlow:
            return Found("time", _where(sys.exc_info()[2]), traceback.format_exc())
        except Exception as err:  # noqa: BLE001 - to find any is what this is for
            detail = f"{type(err).__name__} {_where(err.__traceback__)}"
            return Found("exception", detail, traceback.format_exc())
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        return found

    def _lie(self, path: str, data: bytes) -> Found | None:
        """Scan the file, and hold the answer against what other readers see."""
        try:
            result = self.scan(path, with_hash=False)
        except self.errors as err:
            verdict, known, answer = "", set[str](), f"no answer: {type(err).__name__}"
        else:
            verdict = answer = result.verdict.value
            known = {f"{use.module} {use.name}" for use in result.globals if use.allowed}
        if verdict == "malicious":
            return None
        for pickle in pickles_in(data):
            for asked in asked_by(pickle.data)[0]:
                if asked.name == HOSTILE and asked.by not in ("GLOBAL", "STACK_GLOBAL"):
                    return Found("missed", f"{answer}, by {pickle.reader}")
                if verdict == "clean" and asked.name not in known:
                    return Found("clean", f"names {asked.name[:60]!r} by {pickle.reader}")
        return None

    @staticmethod
    def _ring(_signal: int, _frame: FrameType | None) -> None:
        raise TooSlow


def _peak() -> int:
    """The most memory this process has had, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _where(trace: TracebackType | None) -> str:
    """The innermost line of the package in a traceback, without its number."""
    frames = traceback.extract_tb(trace)
    ours = [frame for frame in frames if "ckptaudit" in frame.filename]
    return f"{Path(ours[-1].filename).name}: {ours[-1].line}" if ours else "outside"


# Mutation


class Mutator:
    """Changes a file where a change counts: the pickle in an archive, and what is compressed."""

    def __init__(self, mutate: Callable[[bytes, int], bytes]) -> None:
        self.mutate = mutate

    def __call__(self, data: bytes, most: int, seed: int) -> bytes:
        """Another file of up to *most* bytes."""
        random = Random(seed)  # noqa: S311 - to choose, not to hide
        if random.randrange(2) and data:
            changed = self._inside(data, random)
            if changed is not None and len(changed) <= most:
                return changed
        return bytes(self.mutate(data, most))

    def _inside(self, data: bytes, random: Random) -> bytes | None:
        if data.startswith(b"PK\3\4"):
            return self._in_zip(data, random)
        for begins, unpack, pack in (
            (b"\x1f\x8b", gzip.decompress, lambda inner: gzip.compress(inner, mtime=0)),
            (b"BZh", bz2.decompress, bz2.compress),
            (b"\xfd7z", lzma.decompress, lzma.compress),
            (b"x", zlib.decompress, zlib.compress),
        ):
            if data.startswith(begins):
                try:
                    inner = unpack(data)
                except BROKEN:
                    return None
                return pack(bytes(self.mutate(inner, LARGEST)))
        return None

    def _in_zip(self, data: bytes, random: Random) -> bytes | None:
        """The archive written anew, one of its files changed, or its name, or a field."""
        entries = []
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                for info in archive.infolist()[:20]:
                    method = 8 if info.compress_type == zipfile.ZIP_DEFLATED else 0
                    entries.append(ZipEntry(info.filename, archive.read(info), method=method))
        except BROKEN:
            return None
        if not entries:
            return None
        # The first is usually the pickle.
        at = random.choice([0, 0, 0, *range(len(entries))])
        entry = entries[at]
        if random.randrange(6):
            entries[at] = ZipEntry(
                entry.name, bytes(self.mutate(entry.data, LARGEST)), method=entry.method
            )
        else:
            name = bytes(self.mutate(entry.name.encode("utf-8", "replace"), 100))
            entries.insert(at, ZipEntry(name.decode("latin-1"), entry.data, method=entry.method))
        try:
            return zip_archive(entries)
        except BROKEN:
            return None


# The two processes: one that fuzzes until libFuzzer ends it, and one that tells of it


def work(corpus: Path, findings: Path, seconds: int) -> None:
    """Fuzz for *seconds*; libFuzzer does not return."""
    import atheris  # noqa: PLC0415 - needed by this process only

    with atheris.instrument_imports(include=["ckptaudit"]):
        target = Target()
    # Only once it fuzzes this is the function that mutates.
    mutator = Mutator(lambda data, most: atheris.Mutate(data, most))  # noqa: PLW0108
    seen: set[tuple[str, str]] = set()

    def one(data: bytes) -> None:
        found = target(data)
        if found is not None and (found.kind, found.detail) not in seen:
            seen.add((found.kind, found.detail))
            keep(findings, found, data)

    words = corpus.parent / "tokens.dict"
    words.write_text("".join(f'"{_quoted(token)}"\n' for token in TOKENS))
    flags = [
        f"-max_total_time={seconds}", f"-max_len={LARGEST}", f"-dict={words}", "-timeout=120",
        "-rss_limit_mb=4096", "-print_final_stats=1", "-detect_leaks=0", "-seed=1",
        f"-artifact_prefix={corpus.parent}/",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *flags, str(corpus)], one, custom_mutator=mutator)
    atheris.Fuzz()


def _quoted(token: bytes) -> str:
    return "".join(rf"\x{byte:02x}" for byte in token)


def keep(findings: Path, found: Found, data: bytes) -> None:
    """Write a finding and its input to the folder *findings*."""
    name = hashlib.sha256(f"{found.kind} {found.detail}".encode()).hexdigest()[:16]
    (findings / f"{name}.bin").write_bytes(data)
    (findings / f"{name}.json").write_text(json.dumps(vars(found), indent=1))
    print(f"FOUND {found.kind}: {found.detail} ({name})", file=sys.stderr, flush=True)


def fill(corpus: Path) -> None:
    """Write the samples and the catalogue of the tests into *corpus*, beside what is there."""
    from catalogue import CASES  # noqa: PLC0415 - it imports the package

    files = {sample.data for sample in (*HONEST, *HOSTILE_FILES)}
    files |= {case.file for case in CASES if isinstance(case.file, bytes)}
    files = {data for data in files if len(data) <= LARGEST}
    for data in files:
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def replay(paths: list[Path]) -> int:
    """Run files without a fuzzer; 1 if one of them is a finding."""
    target = Target()
    status = 0
    for path in paths:
        found = target(path.read_bytes())
        if found is not None:
            status = 1
            print(f"{path}: {found.kind}: {found.detail}\n{found.trace}")
    return status


def run(corpus: Path, seconds: int, report: Path | None) -> int:
    """Fuzz in a process of its own, then say what came out."""
    findings = corpus.parent / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    fill(corpus)
    initial = len(list(corpus.iterdir()))
    began = time.monotonic()
    options = ["--work", "--corpus", str(corpus), "--seconds", str(seconds)]
    log = corpus.parent / "log.txt"
    with log.open("w") as out:
        subprocess.run([sys.executable, __file__, *options], stderr=out, check=False)
    lasted = time.monotonic() - began
    text = log.read_text(errors="replace")
    numbers = dict(re.findall(r"stat::(\w+):\s+(\d+)", text))
    if "number_of_executed_units" not in numbers:
        print(f"the fuzzer did not come to its end; see {log}", file=sys.stderr)
        return 2
    found = [json.loads(path.read_text()) for path in sorted(findings.glob("*.json"))]
    states = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)/\S+", text)
    result = {
        "duration": f"{lasted / 60:.0f} minutes, one process",
        "executions": f"{int(numbers['number_of_executed_units']):,}",
        "corpus": f"{initial:,} files at the start, {len(list(corpus.iterdir())):,} at the end",
        "coverage": f"{int(states[-1][0]):,} edges, {int(states[-1][1]):,} features",
        "largest memory": f"{numbers['peak_rss_mb']} MB, the fuzzer's own included",
        "versions": versions(),
        "lines of the package run by the corpus": lines_run(corpus),
        "findings": str(len(found)),
    }
    table = "".join(f"| {name} | {value} |\n" for name, value in result.items())
    print(table)
    for each in found:
        print(f"{each['kind']}: {each['detail']}")
    if report is not None:
        rewrite(report, f"| | |\n|---|---|\n{table}")
    return int(bool(found))


def lines_run(corpus: Path) -> str:
    """How many lines of each room the corpus runs, by `coverage`."""
    if importlib.util.find_spec("coverage") is None:
        return "not measured"
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder, "data"), Path(folder, "out.json")
        measure = [sys.executable, "-m", "coverage"]
        environment = {**os.environ, "COVERAGE_FILE": str(data)}
        options = [f"--source={ROOT / 'ckptaudit'}", __file__, "--replay", str(corpus)]
        subprocess.run([*measure, "run", *options], env=environment, check=False)
        subprocess.run([*measure, "json", "-q", "-o", str(out)], env=environment, check=True)
        files = json.loads(out.read_text())["files"]
    rooms: dict[str, list[int]] = {}
    for name, file in files.items():
        parts = Path(name).parts
        room = parts[parts.index("ckptaudit") + 1].removesuffix(".py")
        totals = rooms.setdefault(room, [0, 0])
        totals[0] += file["summary"]["covered_lines"]
        totals[1] += file["summary"]["num_statements"]
    shown = ("containers", "vm", "policy", "tensors", "plan", "layouts", "source")
    return ", ".join(f"{room} {100 * rooms[room][0] // rooms[room][1]}%" for room in shown)


def versions() -> str:
    """What took part."""
    parts = [f"Python {platform.python_version()}", platform.machine()]
    parts += [f"{name} {importlib.metadata.version(name)}" for name in ("atheris", "numpy")]
    return ", ".join(parts)


def rewrite(report: Path, table: str) -> None:
    """Put *table* where the last one is in *report*."""
    text = report.read_text()
    begin, end = "<!-- result -->\n", "<!-- end of result -->"
    before, rest = text.split(begin)
    report.write_text(f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}")


def main() -> int:
    """Read the arguments and do what they say."""
    parser = argparse.ArgumentParser(description="Fuzz every verb that reads a file.")
    parser.add_argument("--seconds", type=int, default=1800)
    parser.add_argument("--corpus", type=Path, default=None, help="a folder that is kept")
    parser.add_argument("--report", type=Path, default=None, help="docs/fuzzing.md")
    parser.add_argument("--replay", type=Path, default=None, help="run the files in this folder")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.replay is not None:
        return replay([path for path in sorted(options.replay.iterdir()) if path.suffix != ".json"])
    corpus = options.corpus or Path(tempfile.mkdtemp(prefix="fuzz-")) / "corpus"
    if options.work:
        work(corpus, corpus.parent / "findings", options.seconds)
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: pip install atheris", file=sys.stderr)
        return 2
    return run(corpus, options.seconds, options.report)


if __name__ == "__main__":
    sys.exit(main())
