"""A folder held against what a source gives: every file of a conversion, in one answer.

Knows:      that a folder is proven when each of its files is, and none is missing or strange.
Is told:    what a source gives, and a folder.
Never asks: how one file is proven (`fileproof`), or what a conversion calls its files
            (`folderfiles`).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ckptaudit.errors import Unsupported
from ckptaudit.jobs.basis import from_where
from ckptaudit.jobs.fileproof import FOREIGN_FOLDER, Place, prove
from ckptaudit.jobs.folderfiles import FolderFiles, claim_at, files_against, files_in
from ckptaudit.jobs.opening import File, opened
from ckptaudit.jobs.verification import Verification
from ckptaudit.source import path_text
from ckptaudit.vm import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ckptaudit.jobs.given import Given
    from ckptaudit.plan import ConversionPlan

__all__ = ["FolderProof"]

_SUFFIX = ".safetensors"


class FolderProof:
    """A folder held against what a source gives: one answer for all its files.

    Raises:
        Unsupported: Its files were not made together.
    """

    def __init__(self, given: Given, folder: Path) -> None:
        self.given = given
        self.folder = folder
        # Of each file of weights, how it says that it was made; None if it does not say.
        self.claims = {
            file: claim_at(folder / file)
            for file in files_in(folder)
            if file.endswith(_SUFFIX) and file.count("/") <= 1
        }
        told = Counter(each for each in self.claims.values() if each is not None)
        together = Counter({each: times for each, times in told.items() if each.makes_folder})
        # Of strangers among them there may be some, too: most decide.
        self.options = together.most_common(1)[0][0] if together else None
        if told and not together:
            raise Unsupported(
                f"{path_text(folder)}: holds files each of which was made by itself; name one of "
                "them"
            )

    def run(self, progress: Callable[[int, int], None], *, with_hash: bool) -> Verification:
        """Compare all of it; *progress* is told bytes of weights done, and in all."""
        given = self.given
        options = self.options or FOREIGN_FOLDER
        plan = given.planner(options)({})
        is_ours = self.options is not None
        texts = given.texts(plan, options) if is_ours else {}
        held = files_against(self.folder, plan, texts, options, with_hash=with_hash)
        proven = []
        advance = _Advance(progress, sum(job.view.nbytes for job in plan.jobs))
        # The largest first: meanwhile the hash of the source, which the first waits for, is done.
        for output in sorted(plan.outputs, key=lambda each: -each.nbytes):
            if (file := held.weights.get(output.file)) is None:
                continue
            place = Place(output.file, path_text(file), self.options)
            with opened(self.folder / file, with_hash=with_hash) as converted:
                proven.append(prove(converted, given, advance, place))
            advance.next_file()
        return self.folded(plan, held, proven)

    def folded(
        self, plan: ConversionPlan, held: FolderFiles, proven: Sequence[Verification]
    ) -> Verification:
        """One answer out of those about each file, in the order of their paths."""
        proven = sorted(proven, key=lambda each: each.converted.path)
        files = [*held.settings, *(each.converted for each in proven)]
        # What another tool calls its files, and puts beside them, is its own affair.
        problems = [*held.missing, *([] if self.options is None else held.problems)]
        problems += self.disagreements(held)
        problems += (problem for each in proven for problem in each.problems)
        notes = dict.fromkeys(note for each in proven for note in each.notes)
        if self.options is None:
            notes["its settings were not compared: another tool has its own"] = None
        source, vae = self.given.finished()
        basis = self.given.basis(self.options or FOREIGN_FOLDER)
        return Verification(
            source=source,
            vae_source=vae,
            converted=File(path_text(self.folder), sum(each.size for each in files), None),
            files=tuple(sorted(files, key=lambda each: each.path)),
            equal=not problems and all(each.equal for each in proven),
            coverage=self.given.coverage(),
            options=self.options,
            tensors=tuple(tensor for each in proven for tensor in each.tensors),
            aliases=tuple(from_where(alias, basis) for alias in plan.aliases),
            dropped=tuple(from_where(drop, basis) for drop in plan.drops),
            problems=tuple(problems),
            notes=(*notes, *held.notes),
        )

    def disagreements(self, held: FolderFiles) -> Iterator[str]:
        """Yield each file of the conversion that says otherwise how it was made."""
        for file in held.weights.values():
            if self.claims[file] != self.options:
                yield f"{escape(path_text(file))}: does not say that it was made as others here"


class _Advance:
    """Tells how far all files are, told how far one is."""

    def __init__(self, progress: Callable[[int, int], None], total: int) -> None:
        self._tell = progress
        self._total = total
        self._before = self._now = 0

    def __call__(self, done: int, _of_this_file: int) -> None:
        self._now = done
        self._tell(self._before + done, self._total)

    def next_file(self) -> None:
        self._before += self._now
        self._now = 0
