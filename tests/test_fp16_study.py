"""The study of fp16: that its script runs, says what the page needs, and that the page is whole.

The numbers of docs/fp16.md take a quarter of an hour; here thin layers show that they can be had.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/fp16.md"
MARKED = re.compile(r"<!-- study: ([\w-]+) -->\n(.*?)<!-- /study -->", re.DOTALL)

NEEDED = ("torch", "diffusers", "transformers", "matplotlib")
missing = [name for name in NEEDED if find_spec(name) is None]
needs_all = pytest.mark.skipif(
    bool(missing), reason=f"the study needs {', '.join(missing)}: pip install --group study"
)


@needs_all
def test_the_study_fills_every_part_of_the_page_and_finds_all_as_the_page_says(
    tmp_path: Path,
) -> None:
    page = tmp_path / "fp16.md"
    bare = MARKED.sub(r"<!-- study: \1 -->\n\n<!-- /study -->", PAGE.read_text(encoding="utf-8"))
    page.write_text(bare, encoding="utf-8")
    command = [
        *(sys.executable, "-W", "ignore", str(ROOT / "scripts/fp16_study.py"), "--quick"),
        *("--write", str(page), "--dir", str(tmp_path)),
    ]

    done = subprocess.run(  # noqa: S603 - our own script
        command,
        check=False,
        capture_output=True,
        text=True,
        # Threads that wait for each other are slower than one, where layers are thin.
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )

    assert done.returncode == 0, done.stderr
    parts = dict(MARKED.findall(page.read_text(encoding="utf-8")))
    assert [name for name, text in parts.items() if not text.strip()] == ["reference"]
    # An image in float16 at first, and none when the decoder's stream is louder.
    assert "| 1 | fp16 |" in parts["vae-images"]
    assert re.search(r"\| 32 \| fp16 \| none \| 100% \| 100% \|", parts["vae-images"])
    assert re.search(r"fp16: (\d+) of \1 tensors", parts["costs"])
    assert {path.name for path in tmp_path.iterdir()} == {
        "fp16.md", "fp16-weights.svg", "fp16-unet.svg", "fp16-vae.svg",
    }  # fmt: skip


def test_every_measured_part_of_the_page_is_there_and_every_plot() -> None:
    text = PAGE.read_text(encoding="utf-8")

    assert [name for name, part in MARKED.findall(text) if not part.strip()] == []
    plots = re.findall(r"\]\((fp16-\w+\.svg)\)", text)
    assert len(plots) == 3
    assert [name for name in plots if not (PAGE.parent / name).exists()] == []
