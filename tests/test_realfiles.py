"""Files that other people wrote, with torch versions from 2017 to 2025.

They are not part of the project; where they are absent these tests are skipped.
"""

from __future__ import annotations

import json
import pickletools
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import audit
from oracle import at, converted, flattened, load, tensors_in

REAL = Path(__file__).parents[2] / "shared" / "realfiles"
HAS_THEM = (REAL / "manifest.json").is_file()
MANIFEST = json.loads((REAL / "manifest.json").read_text()) if HAS_THEM else []
VDSR = "vdsr_model_epoch_50.pth"

pytestmark = pytest.mark.skipif(
    not HAS_THEM, reason="../shared/realfiles is not here: real checkpoints were not tried"
)


def named(**wanted: object) -> list[str]:
    return [
        entry["file"]
        for entry in MANIFEST
        if all(entry[name] == value for name, value in wanted.items())
    ]


OPENED_BY_TORCH = named(hostile=False, weights_only_load="OK")
HOSTILE = named(hostile=True)


def convert(name: str, tmp_path: Path, *options: str) -> tuple[Any, Path]:
    output = tmp_path / "out.safetensors"
    done = audit("convert", REAL / name, "-o", output, "-f", "json", *options)
    assert done.status == 0, done
    return done.files[0], output


@pytest.mark.parametrize("dedupe", ["safe", "none", "all"])
@pytest.mark.parametrize("name", OPENED_BY_TORCH)
def test_keeping_precision_gives_what_torch_loads(name: str, dedupe: str, tmp_path: Path) -> None:
    """Key for key and bit for bit; and what is not written is accounted for."""
    root = load(REAL / name)

    result, output = convert(name, tmp_path, "--precision", "keep", "--dedupe", dedupe)

    assert converted(output) == flattened(at(result["source"]["state_dict"], root))
    told = [*result["tensors"], *result["aliases"], *result["dropped"]]
    assert len(told) == sum(1 for _ in tensors_in(root))
    inside = {id(tensor) for _, tensor in tensors_in(at(result["source"]["state_dict"], root))}
    outside = {id(tensor) for _, tensor in tensors_in(root)} - inside
    dropped = {drop["source"]: at(drop["source"], root) for drop in result["dropped"]}
    assert {id(tensor) for tensor in dropped.values()} == outside
    for drop in result["dropped"]:
        tensor = dropped[drop["source"]]
        assert drop["what"] == f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


@pytest.mark.parametrize("name", [*OPENED_BY_TORCH, *named(file=VDSR)])
def test_what_was_converted_is_proven(name: str, tmp_path: Path) -> None:
    _, output = convert(name, tmp_path)

    assert audit("verify", REAL / name, output).status == 0


def storages_of(data: bytes) -> dict[str, bytes]:
    """The float storages of a legacy stream by key, found without our reader.

    Five pickles, the last of them a list of keys, then each storage: count, floats.
    """
    end = 0
    keys: list[str] = []
    for _ in range(5):
        opcodes = list(pickletools.genops(data[end:]))
        keys = [arg for _, arg, _ in opcodes if isinstance(arg, str)]
        end += (opcodes[-1][2] or 0) + 1
    storages = {}
    for key in keys:
        (count,) = struct.unpack_from("<q", data, end)
        storages[key] = data[end + 8 : end + 8 + 4 * count]
        end += 8 + 4 * count
    assert end == len(data)
    return storages


@pytest.mark.skipif(not named(file=VDSR), reason=f"{VDSR} is not here")
def test_a_module_that_torch_refuses_gives_its_twenty_tensors(tmp_path: Path) -> None:
    """Its classes are never imported: a stranger's reader finds the same bytes."""
    result, output = convert(VDSR, tmp_path, "--precision", "keep")

    tensors = converted(output)
    assert len(tensors) == 20
    assert set(tensors) == {
        "input.weight",
        "output.weight",
        *(f"residual_layer.{layer}.conv.weight" for layer in range(18)),
    }
    storages = storages_of((REAL / VDSR).read_bytes())
    assert sorted(data for _, _, data in tensors.values()) == sorted(storages.values())
    assert {kind for kind, _, _ in tensors.values()} == {"torch.float32"}
    assert (result["aliases"], result["dropped"]) == ([], [])


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_exits_1_and_names_what_it_asks_for(name: str, tmp_path: Path) -> None:
    (entry,) = (entry for entry in MANIFEST if entry["file"] == name)
    calls = [asked for asked in entry["globals"] or () if asked != "collections.OrderedDict"]

    done = audit("scan", REAL / name)

    assert done.status == 1
    for asked in calls:
        assert f"would call {asked}" in done.out
    refused = audit("convert", REAL / name, "-o", tmp_path / "out.safetensors")
    assert refused.status in ((1,) if calls else (1, 2))
    assert not list(tmp_path.iterdir())


# To run a program, to fork or to unpickle raises an audit event; CPython's list of them is in its
# documentation, "Audit events table".
WATCHER = """
import sys
from ckptaudit.cli import run
import ckptaudit.jobs.convert, ckptaudit.jobs.verify, ckptaudit.policy, ckptaudit.report

NEVER = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.", "pickle.")

def watch(event, args):
    if event.startswith(NEVER):
        sys.__stderr__.write(f"RAN {event}\\n")

sys.addaudithook(watch)
for path in sys.argv[1:]:
    for verb, *options in ["scan"], ["inspect"], ["convert", "--allow-unsafe", "-o", "out/"]:
        sys.argv = ["ckptaudit", verb, path, *options]
        try:
            run()
        except SystemExit:
            pass
"""


def test_nothing_of_a_hostile_file_runs(tmp_path: Path) -> None:
    """Not even when it is converted on request."""
    (tmp_path / "out").mkdir()

    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", WATCHER, *(REAL / name for name in HOSTILE)],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        timeout=60,
    )

    assert b"RAN" not in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"posix.system" in done.stdout
    assert {path.suffix for path in tmp_path.rglob("*.*")} <= {".safetensors", ".json"}
