"""Results as Markdown, for the summary of a CI run or a comment on a pull request.

Knows:      tables, lists and code spans as GitHub and CommonMark have them.
Is told:    what a run came to.
Never asks: a renderer to be careful: whatever comes out of a file stands in a code span
            that it cannot end, and no raw HTML is written.

Files are in the order in which they were named, findings with the worst in front, rules by id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptaudit.policy import RULES, Severity
from ckptaudit.report import facts, figures
from ckptaudit.report.document import Failure
from ckptaudit.report.escaping import code
from ckptaudit.report.facts import size_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import date

    from ckptaudit.jobs.account import Conversion, VaeSource
    from ckptaudit.jobs.inspect import Inspection
    from ckptaudit.jobs.measures import PartMeasure
    from ckptaudit.jobs.opening import File
    from ckptaudit.jobs.scan import ScanResult
    from ckptaudit.jobs.sizes import Sizes
    from ckptaudit.layouts import ComponentCount
    from ckptaudit.policy import Coverage, Finding, Permitted
    from ckptaudit.report.document import Run

__all__ = ["conversion_markdown", "inspection_markdown", "scan_markdown"]

_NO_ANSWER = "**no answer**"


def scan_markdown(run: Run[ScanResult], expires: date) -> str:
    """Verdicts in a table; then for each file why, and what was not read; then the rules.

    Args:
        run: What the scans came to.
        expires: When a permission would expire that is given now.
    """
    rows = [
        [code(answer.path), _NO_ANSWER, "", "", "", ""]
        if isinstance(answer, Failure)
        else [
            code(answer.path),
            _verdict(answer.verdict),
            _coverage(answer.coverage),
            answer.container.value,
            size_text(answer.size),
            _hash(answer.sha256),
        ]
        for answer in run.answers
    ]
    return _document(
        "# ckptaudit scan",
        _table(["file", "verdict", "coverage", "format", "size", "sha256"], rows),
        *(block for result in run.results for block in _scanned(result, expires)),
        *_failures(run.failures),
        *_rules(finding for result in run.results for finding in result.findings),
    )


def inspection_markdown(run: Run[Inspection]) -> str:
    """Families in a table; then what each file holds, part by part."""
    rows = [
        [code(answer.path), _NO_ANSWER, "", "", ""]
        if isinstance(answer, Failure)
        else [
            code(answer.path),
            _family(answer.family, answer.variant),
            str(len(answer.tensors)),
            size_text(sum(tensor.nbytes for tensor in answer.tensors)),
            _verdict(answer.verdict),
        ]
        for answer in run.answers
    ]
    return _document(
        "# ckptaudit inspect",
        _table(["file", "family", "tensors", "weights", "verdict"], rows),
        *(block for result in run.results for block in _inspected(result)),
        *_failures(run.failures),
    )


def conversion_markdown(run: Run[Conversion]) -> str:
    """Sizes in a table; then what each conversion wrote, cost and left out."""
    rows = [
        [code(answer.path), _NO_ANSWER, "", "", ""]
        if isinstance(answer, Failure)
        else [
            code(answer.source.path),
            _family(answer.family, answer.variant),
            size_text(answer.source.size),
            size_text(sum(output.size for output in answer.outputs)),
            "converted" if answer.written else "planned",
        ]
        for answer in run.answers
    ]
    return _document(
        "# ckptaudit convert",
        _table(["file", "family", "before", "after", ""], rows),
        *(block for result in run.results for block in _converted(result)),
        *_failures(run.failures),
        *_rules(finding for result in run.results for finding in _found(result)),
    )


def _found(result: Conversion) -> tuple[Finding, ...]:
    """What was found in all files that *result* is about."""
    others = () if result.vae_source is None else result.vae_source.findings
    return (*result.findings, *others)


def _scanned(result: ScanResult, expires: date) -> list[str]:
    if not (result.findings or result.permitted or result.notes or result.coverage.gaps):
        return []
    return [
        f"## {code(result.path)}",
        _list(result.notes),
        *_findings(result.findings),
        *_permitted(result.permitted),
        *_not_read(result.coverage),
        *_to_permit(result.to_permit, expires),
    ]


def _inspected(result: Inspection) -> list[str]:
    distrusted = result.verdict > Severity.CLEAN
    held = facts.leftovers(result.leftovers)
    return [
        f"## {code(result.path)}",
        _list(
            [
                f"{result.container.value}, {size_text(result.size)}, {_hash(result.sha256)}",
                *([f"{_verdict(result.verdict)}: `ckptaudit scan` says why"] if distrusted else []),
                f"state dict: {code(result.state_dict or facts.root_of(result.container))}",
                *result.notes,
                *(f"because {code(evidence)}" for evidence in result.evidence),
                *(f"{dtype}: {size}" for dtype, size in facts.sizes_by_dtype(result.tensors)),
                *figures.memory(result.sizes),
                *(figures.hashes(result.identity) if result.identity is not None else ()),
                *map(code, figures.twins(result.twins)),
            ]
        ),
        *_components(result.components, result.sizes),
        *_measures(result.stats),
        *(["At risk:", _list(map(code, figures.risks(result.risks)))] if result.risks else []),
        *(["Beside the weights:", _list(map(code, held))] if held else []),
        *_findings(result.findings),
        *_not_read(result.coverage),
    ]


def _converted(result: Conversion) -> list[str]:
    told = [
        *facts.choices(result.tensors),
        *facts.stored_once(result),
        *facts.drops(result.dropped),
    ]
    return [
        f"## {code(result.source.path)}",
        _list(
            [
                *(_output(result, output) for output in result.outputs),
                *_vae_of(result.vae_source),
                *result.notes,
                *map(code, figures.modelspec(result)),
                *figures.saved(result.sizes),
                *figures.memory(result.sizes),
                *facts.losses(result.tensors),
                *map(code, told),
            ]
        ),
        *_components(result.components, result.sizes),
        *_findings(result.findings),
        *_permitted(result.permitted),
        *_not_read(result.source.coverage),
        *_said_of(result.vae_source),
    ]


def _vae_of(source: VaeSource | None) -> list[str]:
    if source is None:
        return []
    what = f"{source.container.value}, {source.family}, {_hash(source.sha256)}"
    return [f"with the VAE of {code(source.path)}: {what}"]


def _said_of(source: VaeSource | None) -> list[str]:
    """What a scan has to say of the file that the VAE is from."""
    if source is None:
        return []
    told = [
        *_findings(source.findings),
        *_permitted(source.permitted),
        *_not_read(source.coverage),
    ]
    return [f"Of {code(source.path)}:", *told] if told else []


def _output(result: Conversion, output: File) -> str:
    return f"{code(output.path)}: {facts.tensors_in(result, output)}, {_hash(output.sha256)}"


def _findings(findings: Sequence[Finding]) -> list[str]:
    if not findings:
        return []
    items = []
    for finding in facts.worst_first(findings):
        place = ", ".join(facts.place_of(finding))
        rule = f"[{finding.rule}](#{finding.rule.lower()})"
        where = f"{rule}, {code(place)}" if place else rule
        known = facts.known(finding)
        items.append(f"{_verdict(finding.severity)} {where}{known}: {code(finding.message)}")
    return ["Findings:", _list(facts.first_of(items))]


def _permitted(found: Sequence[Permitted]) -> list[str]:
    return ["Permitted:", _list(map(code, facts.permitted(found)))] if found else []


def _to_permit(lines: Sequence[str], expires: date) -> list[str]:
    told = facts.to_permit(lines, expires)
    how = f"{facts.HOW_TO_PERMIT[0].upper()}{facts.HOW_TO_PERMIT[1:]}"
    return [how, _list(map(code, told))] if told else []


def _not_read(coverage: Coverage) -> list[str]:
    if not coverage.gaps:
        return []
    return ["Not read:", _list(facts.first_of(code(str(gap)) for gap in coverage.gaps))]


def _components(components: Iterable[ComponentCount], sizes: Sizes) -> list[str]:
    rows = [
        [
            part.component.value,
            f"{part.present}/{part.expected}" if part.expected else str(part.present),
            figures.size_of_part(sizes, part.component),
            "; ".join(map(code, facts.wrong_with(part))),
        ]
        for part in components
    ]
    return [_table(["part", "tensors", "size", "wrong"], rows)] if rows else []


def _measures(parts: Iterable[PartMeasure]) -> list[str]:
    held, cast = [], []
    for part in parts:
        name, stats = part.component.value, part.stats.held
        numbers = map(figures.number, (stats.min, stats.max, stats.mean, stats.std))
        held.append([name, str(stats.numel), *numbers, str(stats.zeros)])
        casts = (("fp16", part.stats.float16), ("bf16", part.stats.bfloat16))
        cast += [
            [name, target, *figures.loss_of(each)] for target, each in casts if each is not None
        ]
    if not held:
        return []
    return [
        _table(["part", "values", "min", "max", "mean", "std", "zeros"], held),
        _table(
            ["part", "as", "overflowed", "to zero", "subnormal", "largest error", "dB"],
            cast,
        ),
    ]


def _failures(failures: Sequence[Failure]) -> list[str]:
    if not failures:
        return []
    return ["## No answer", _list(code(failure.error) for failure in failures)]


def _rules(findings: Iterable[Finding]) -> list[str]:
    """What the rules that were hit mean, so that nobody has to look them up."""
    found = {finding.rule for finding in findings}
    sections = [
        f"### {rule.id}\n\nA file with it {rule.title}. {rule.why}"
        for rule in RULES.values()
        if rule.id in found
    ]
    return ["## Rules", *sections] if sections else []


def _verdict(severity: Severity) -> str:
    return severity.value if severity is Severity.CLEAN else f"**{severity.value}**"


def _coverage(coverage: Coverage) -> str:
    return "complete" if coverage.complete else "**incomplete**"


def _family(family: str, variant: str | None) -> str:
    return family + (f" ({variant})" if variant else "")


def _hash(sha256: str | None) -> str:
    return f"`{sha256}`" if sha256 else "not hashed"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"* {item}" for item in items)


def _document(*blocks: str) -> str:
    return "\n\n".join(block for block in blocks if block) + "\n"
