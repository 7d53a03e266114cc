"""The answer of a scan, and what becomes of it once the file's hash is known.

Knows:      which findings a permission for a file takes out of the verdict.
Is told:    what `judge` found, a policy, and the file's SHA-256.
Never asks: why anything was found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckptaudit.policy.permissions import (
    Permitted,
    is_permittable,
    line_for_file,
    line_for_name,
)
from ckptaudit.policy.rules import Severity

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ckptaudit.containers import Place
    from ckptaudit.policy.findings import Subject
    from ckptaudit.policy.permissions import Policy
    from ckptaudit.policy.rules import Coverage, Finding

__all__ = ["AskedPair", "GlobalUse", "Judgement", "worst_of"]


@dataclass(frozen=True, slots=True)
class GlobalUse:
    """A name the file asks for.

    Attributes:
        module: As the pickle spells it, escaped.
        name: As the pickle spells it, escaped.
        count: How often it is asked for.
        allowed: Why it is allowed, or None.
    """

    module: str
    name: str
    count: int
    allowed: str | None


@dataclass(frozen=True, slots=True)
class AskedPair:
    """A name with findings that a permission for the pair would take away.

    Attributes:
        module: As the pickle spells it.
        name: As the pickle spells it.
        rules: The rules that these findings fall under.
    """

    module: str
    name: str
    rules: frozenset[str]


@dataclass(frozen=True, slots=True)
class Judgement:
    """The answer of a scan.

    Attributes:
        verdict: The worst severity among *findings*; clean without any.
        coverage: Whether the whole file was read.
        findings: In file order, pickle by pickle; of each rule the first few hundred, and
            then how many more there were.
        permitted: What a policy permits of what was found, likewise.
        globals: The names asked for, in order of first mention; the first thousand of them.
        pairs: What permissions for pairs would take away; the first thousand.
        rules: Rules with findings that only a permission for the file would take away.
        subjects: Each finding that was kept, permitted or not, and what it is about; those that
            count others are about nothing.
        unread: What the gaps that were kept are about.
        places: The file and every file inside it, as they were judged.
    """

    verdict: Severity
    coverage: Coverage
    findings: tuple[Finding, ...]
    permitted: tuple[Permitted, ...]
    globals: tuple[GlobalUse, ...]
    pairs: tuple[AskedPair, ...]
    rules: tuple[str, ...]
    subjects: tuple[tuple[Finding, Subject], ...]
    unread: tuple[Subject, ...]
    places: tuple[Place, ...]

    def hangs_on_hash(self, policy: Policy | None) -> bool:
        """Whether *policy* may permit something that was found, if the file is the right one."""
        rules = {rule for _, rule in policy.files} if policy is not None else set()
        return any(finding.rule in rules for finding in self.findings)

    def of_file(self, sha256: str | None, policy: Policy | None) -> Judgement:
        """This judgement of the file with that hash: what *policy* permits in it is permitted.

        Without a hash nothing is.
        """
        if sha256 is None or policy is None or not self.hangs_on_hash(policy):
            return self
        permissions = {
            rule: permission for (file, rule), permission in policy.files.items() if file == sha256
        }
        permitted = [
            Permitted(finding, each.entry, each.justification, each.expires)
            for finding in self.findings
            if (each := permissions.get(finding.rule)) is not None
        ]
        left = tuple(finding for finding in self.findings if finding.rule not in permissions)
        return replace(
            self,
            verdict=worst_of(left),
            findings=left,
            permitted=(*self.permitted, *permitted),
            pairs=tuple(pair for pair in self.pairs if pair.rules - set(permissions)),
            rules=tuple(rule for rule in self.rules if rule not in permissions),
        )

    def proposals(self, sha256: str | None) -> tuple[str, ...]:
        """Lines that a policy would need for a clean verdict, if somebody vouched for each.

        Of what only a permission for the file takes away there is none without a hash.
        """
        of_files = (
            line_for_file(sha256, rule)
            for rule in self.rules
            if sha256 is not None and is_permittable(rule)
        )
        return (*(line_for_name(pair.module, pair.name) for pair in self.pairs), *of_files)


def worst_of(findings: Iterable[Finding]) -> Severity:
    """The worst severity among *findings*; clean without any."""
    return max((finding.severity for finding in findings), default=Severity.CLEAN)
