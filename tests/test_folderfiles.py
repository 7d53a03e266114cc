"""Whatever a conversion puts into a folder, a later one knows for a file of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ckptaudit.jobs.folderfiles import own_files
from ckptaudit.jobs.receipt import metadata_of
from ckptaudit.layouts import FAMILIES, Detection
from ckptaudit.plan import Layout, Options
from ckptaudit.writer import header_of

if TYPE_CHECKING:
    from pathlib import Path

OURS = header_of((), metadata_of(Options(layout=Layout.DIFFUSERS), (), None))


@pytest.mark.parametrize(
    "name", [name for name, family in FAMILIES.items() if family.has_diffusers_layout]
)
def test_all_that_a_folder_of_any_family_has_may_go_with_it(tmp_path: Path, name: str) -> None:
    """Stale weights beside new ones are a mixture, also in a folder that few pipelines have."""
    family, found = FAMILIES[name], Detection(name, None, ())
    parts = (*family.models, *family.rare)
    weights = {found.weights_file(part.component) for part in parts}
    made = {*weights, *found.folder_files(weights, "epsilon")}
    for file in (*made, "tokenizer/vocab.json", "safety_checker/model.safetensors"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(OURS if file in weights else b"{}")

    assert own_files(tmp_path, tmp_path.name) == made
