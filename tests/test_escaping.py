"""Whatever a file, or the name of one, says: no terminal, no renderer and no runner obeys it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import Run, audit
from forge import (
    BINPERSID,
    CALLS_SYSTEM,
    NONE,
    POP,
    Raw,
    ZipEntry,
    called,
    floats,
    gzipped,
    legacy_stream,
    npy_file,
    npz_file,
    object_npy,
    pax_header,
    pickled,
    python_zip,
    safetensors_entry,
    safetensors_file,
    stack_global,
    state_dict,
    storage_id,
    tar_archive,
    tar_member,
    tar_members,
    tensor,
    torch_entries,
    torch_zip,
    torchscript_zip,
    value,
    with_entry,
    zip_archive,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# Each ends what it stands in and begins something of its own.
VOICES = {
    "escape-sequences": "\x1b[2J\x1b]0;owned\x07\x9b31m",
    "commands": "\n::error::x\r\n::set-output name=a::b\n##[group]y\n##vso[task.complete]z",
    "commands-after-blanks": "\u2028 \t::stop-commands::x\u0085::error::y\x0b::warning::z",
    "right-to-left": "\u202egpj.exe\u2066\u200e\u061c",
    "invisible": "\u200b\ufeff\u00ad\U000e0041",
    "surrogates": "\ud800\udc00\udfff::error::",
    "fingers-at-the-beginning": "::error file=a::x",
    "nothing": "",
    "backslashes": "\\x1b[2J\\n::error::\\",
    "quotes": "'\"`|<b>${{ secrets.X }}$(true)",
}


def text_of(voice: str) -> str:
    """What of *voice* a zip can have in a name: bytes that are no UTF-8 are replaced by us."""
    return voice.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def in_pickle(voice: str) -> bytes:
    """As a key, a name, an argument, a persistent id."""
    weights = Raw(tensor(storage_id("0", 2), (2,)))
    asked = Raw(called(stack_global(voice, voice), voice, {voice: voice}))
    return torch_zip(
        pickled(
            value(voice) + BINPERSID + POP,
            value({voice: weights, "x": asked}),
            protocol=4,
        ),
        {"0": floats(1, 2)},
    )


def in_zip(voice: str) -> bytes:
    """As the name of a storage, of a pickle, of a file, of what is not there."""
    key = text_of(voice).replace("/", "")
    weights = {"w": Raw(tensor(storage_id(voice, 2), (2,)))}
    return zip_archive(
        [
            *torch_entries(pickled(value(weights)), {key: floats(1)}),
            ZipEntry(f"archive/{key}.pkl", pickled(CALLS_SYSTEM)),
            ZipEntry(f"archive/{key}.gz", gzipped(torch_zip(pickled(CALLS_SYSTEM)))),
            ZipEntry(f"{key}", b"a readme"),
            ZipEntry(f"{key}", b"another"),
        ]
    )


def as_root(voice: str) -> bytes:
    return zip_archive([ZipEntry(f"{text_of(voice)}/a", object_npy(pickled(CALLS_SYSTEM)))])


def encrypted(voice: str) -> bytes:
    entries = with_entry(torch_entries(b"\xff", {}), "data.pkl", flags=0x809)
    root = text_of(voice).replace("/", "") or "archive"
    return zip_archive([with_name(entry, root) for entry in entries])


def with_name(entry: ZipEntry, root: str) -> ZipEntry:
    return ZipEntry(entry.name.replace("archive", root), entry.data, flags=entry.flags)


def as_byte_order(voice: str) -> bytes:
    octets = voice.encode("utf-8", "surrogatepass")
    return zip_archive([*torch_entries(state_dict({}), {}), ZipEntry("archive/byteorder", octets)])


def in_legacy(voice: str) -> bytes:
    weights = {voice: Raw(tensor(storage_id(voice, 2, view=(None,)), (2,)))}
    return legacy_stream(pickled(value(weights)), [(voice, 3, floats(1, 2))])


def in_legacy_keys(voice: str) -> bytes:
    return legacy_stream(pickled(value({})), keys=pickled(value([voice])))


def in_tar(voice: str) -> bytes:
    name = text_of(voice).replace("\0", "")[:60]
    return tar_archive(
        [*tar_members(pickled(value({voice: 1}))).items(), (name, pickled(CALLS_SYSTEM))]
    )


def in_pax(voice: str) -> bytes:
    name = re.sub(r"[=\n]", "", text_of(voice)) or "x"
    member = tar_member("pickle", pickled(NONE))
    return pax_header(**{f"GNU.{name}": "1"}) + member + bytes(1024)


def in_npz(voice: str) -> bytes:
    return npz_file({text_of(voice): object_npy(pickled(CALLS_SYSTEM)), "b": b"no array"})


def in_npy(voice: str) -> bytes:
    return npy_file(text_of(voice).encode("latin-1", "replace").decode("latin-1"), (1,), b"")


def in_archive(voice: str) -> bytes:
    return python_zip({text_of(voice) or "x": pickled(CALLS_SYSTEM), "readme": b"x"})


def in_safetensors(voice: str) -> bytes:
    key = text_of(voice)
    entry = safetensors_entry("F32", [1], 0, 4)
    return safetensors_file({key: {**entry, key: 1}, "__metadata__": {key: key}}, bytes(5))


def in_safetensors_dtype(voice: str) -> bytes:
    return safetensors_file(
        {text_of(voice): safetensors_entry(text_of(voice), [1], 0, 4)}, bytes(4)
    )


def in_script(voice: str) -> bytes:
    return torchscript_zip(pickled(called(stack_global("__torch__", voice)), protocol=4))


def as_text(voice: str) -> bytes:
    return f"<html>{voice}".encode("utf-8", "surrogatepass")


FILES: dict[str, Callable[[str], bytes]] = {
    forge.__name__.replace("_", "-"): forge
    for forge in (
        in_pickle,
        in_zip,
        as_root,
        encrypted,
        as_byte_order,
        in_legacy,
        in_legacy_keys,
        in_tar,
        in_pax,
        in_npz,
        in_npy,
        in_archive,
        in_safetensors,
        in_safetensors_dtype,
        in_script,
        as_text,
    )
}
COMMANDS = {
    "scan": ("text", "json", "jsonl", "sarif", "md"),
    "explain": ("text", "json"),
    "inspect": ("text", "json", "md"),
    "convert": ("text", "json", "md"),
}


def argument(voice: str) -> str:
    """*voice* as a shell would hand it over: bytes that are no UTF-8 are lone surrogates."""
    octets = voice.encode("utf-8", "surrogatepass").replace(b"\0", b"")
    return octets.decode("utf-8", "surrogateescape")


def assert_obeyed_by_nobody(text: str) -> None:
    """Of what is printed every character shows, and no line is a command."""
    for line in text.split("\n"):
        assert all(char.isprintable() for char in line), ascii(line)
        assert not line.lstrip().startswith("::"), line
        assert not re.search(r"##\w*\[", line), line


@pytest.fixture(params=[pytest.param(voice, id=what) for what, voice in VOICES.items()])
def voice(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    text: str = request.param
    return text


def asked(verb: str, format_: str, path: object) -> list[Run]:
    """What a command says in one format, and in all of its side files."""
    match verb:
        case "scan":
            side = ["--json=j", "--sarif=s", "--md=m", "--sbom=b"]
            done = audit(verb, f"-f{format_}", "--no-hash", *side, "--", path)
            return [done, *(Run(0, Path(name).read_text("utf-8"), "") for name in "jsmb")]
        case "explain":
            return [
                audit(verb, f"-f{format_}", "--no-hash", *every, "--", path)
                for every in ([], ["--all"], ["--record", str(path)])
            ]
        case "convert":
            dry = ["--dry-run", "--allow-unsafe", "-o", "out.safetensors"]
            return [audit(verb, f"-f{format_}", *dry, "--", path), audit("verify", path, path)]
        case _:
            return [audit(verb, f"-f{format_}", "--no-hash", "--", path)]


@pytest.mark.parametrize("forge", FILES.values(), ids=FILES)
@pytest.mark.parametrize("verb", COMMANDS)
def test_nothing_in_a_file_speaks_for_itself(
    verb: str, forge: Callable[[str], bytes], voice: str
) -> None:
    Path("a.pt").write_bytes(forge(voice))

    for format_ in COMMANDS[verb]:
        for done in asked(verb, format_, "a.pt"):
            assert "internal error" not in done.err
            assert_obeyed_by_nobody(done.out + done.err)


@pytest.mark.parametrize("there", ["there", "not-there", "a-directory"])
@pytest.mark.parametrize("verb", COMMANDS)
def test_no_name_of_a_file_speaks_for_itself(verb: str, there: str, voice: str) -> None:
    name = argument(voice).replace("/", "") or "x"
    if there == "a-directory":
        Path(name).mkdir()
    if there == "there":
        Path(name).write_bytes(torch_zip(pickled(CALLS_SYSTEM)))

    for format_ in COMMANDS[verb]:
        for done in asked(verb, format_, name):
            assert "internal error" not in done.err
            assert_obeyed_by_nobody(done.out + done.err)


@pytest.mark.parametrize(
    "arguments",
    [
        ("scan", "--fail-on={}", "a"),
        ("scan", "-f{}", "a"),
        ("scan", "--{}", "a"),
        ("{}",),
        ("rules", "{}"),
        ("explain", "a", "--record={}"),
        ("convert", "a", "-o", "{}"),
        ("convert", "a", "--precision={}"),
        ("scan", "a", "--json={}"),
    ],
    ids=["choice", "format", "option", "command", "rule", "record", "output", "precision", "side"],
)
def test_no_argument_speaks_for_itself(arguments: tuple[str, ...], voice: str) -> None:
    Path("a").write_bytes(torch_zip(state_dict({"w": 1}), {"0": floats(1)}))

    done = audit(*(given.format(argument(voice)) for given in arguments))

    assert "internal error" not in done.err
    assert_obeyed_by_nobody(done.out + done.err)


def test_not_even_an_exception_speaks_for_itself(
    voice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in us may carry what a file says, with the stack if that is asked for."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(voice)

    Path("a").write_bytes(b"")
    monkeypatch.setattr("ckptaudit.jobs.scan.scan", broken)
    for debug in ("", "1"):
        monkeypatch.setenv("CKPTAUDIT_DEBUG", debug)

        done = audit("scan", "a")

        assert done.status == 2
        assert "internal error" in done.err
        assert_obeyed_by_nobody(done.err)
