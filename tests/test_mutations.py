"""Damaged files: whatever becomes of them there is an answer, it is cheap, and it is no lie.

Valid files of every kind are damaged, as they stand or only a pickle in them, so that the file
around it still fits.  What a damaged file still asks for is said by a witness that shares no
code with the package and executes nothing (`readers`): if some other reader would still hand
an unpickler a pickle in which the hostile name is called, there must be an answer, malicious.
Where the damage destroyed that, anything goes.
"""

from __future__ import annotations

import tracemalloc
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from catalogue import CASES
from hypothesis import event, given, settings
from hypothesis import strategies as st
from mutations import Mutation, mutated, mutations
from readers import Asked, asked_by, pickles_in
from samples import FRAMINGS, HONEST, HOSTILE, HOSTILE_FILES, PAYLOADS, Sample

from ckptaudit.containers import Container, open_container
from ckptaudit.errors import CkptauditError
from ckptaudit.jobs.convert import convert
from ckptaudit.jobs.explain import explain
from ckptaudit.jobs.inspect import inspect
from ckptaudit.jobs.scan import scan
from ckptaudit.policy import Severity, judge
from ckptaudit.source import BufferSource
from ckptaudit.tensors import misfits
from ckptaudit.vm import Global, trace_pickle

if TYPE_CHECKING:
    from pathlib import Path

# To ask for a name is not to do something with it.
ASKS = {Asked(HOSTILE, "GLOBAL"), Asked(HOSTILE, "STACK_GLOBAL")}
LARGEST = 8192
PUBLISHED = tuple(
    Sample(case.technique, case.file)
    for case in CASES
    if isinstance(case.file, bytes)
    and len(case.file) <= LARGEST
    and case.hit.severity is Severity.MALICIOUS
)
# A decoder of xz, and a second one where the first met an error, with 8 MiB of memory each.
MOST_MEMORY = 20 << 20


@st.composite
def damaged(draw: st.DrawFn, samples: tuple[Sample, ...]) -> tuple[Sample, list[Mutation]]:
    """A file, and what is to be done to it."""
    sample = draw(st.sampled_from(samples))
    return sample, draw(mutations(len(sample.data), payload_in(sample.data)))


@st.composite
def damaged_pickles(draw: st.DrawFn) -> tuple[str, str, list[Mutation]]:
    """A framing, a payload, and what is to be done to the pickle of it before it is framed."""
    framing = draw(st.sampled_from(sorted(FRAMINGS)))
    payload = draw(st.sampled_from(sorted(PAYLOADS)))
    pickle = pickle_of(framing, payload)
    return framing, payload, draw(mutations(len(pickle), payload_in(pickle)))


def payload_in(data: bytes) -> range:
    """Where the hostile name and what is done with it are, if they can be seen."""
    at = max(data.find(b"posix"), 0)
    return range(at - 1, min(at + 25, len(data))) if at else range(0)


def pickle_of(framing: str, payload: str) -> bytes:
    pickled, _ = FRAMINGS[framing]
    return pickled(PAYLOADS[payload])


def opened(data: bytes) -> Container | None:
    """The container, or None if there is no answer."""
    with suppress(CkptauditError):
        return open_container(BufferSource(data))
    return None


def uses_in(data: bytes) -> set[Asked]:
    """What unpicklers would ask for, and do with it, if any reader gave them what it reads."""
    return {asked for pickle in pickles_in(data) for asked in asked_by(pickle.data)[0]}


def still_acts(data: bytes) -> bool:
    return any(asked.name == HOSTILE for asked in uses_in(data) - ASKS)


# The witness


@pytest.mark.parametrize("sample", HOSTILE_FILES, ids=lambda sample: sample.name)
def test_the_witness_sees_what_a_whole_file_does(sample: Sample) -> None:
    """Else the laws below would hold of nothing."""
    assert still_acts(sample.data)


@pytest.mark.parametrize("sample", HONEST, ids=lambda sample: sample.name)
def test_the_witness_sees_nothing_in_an_honest_file(sample: Sample) -> None:
    assert not any(asked.name == HOSTILE for asked in uses_in(sample.data))


@settings(max_examples=300)
@given(damaged_pickles())
def test_the_machine_asks_for_what_the_witness_sees(
    damage: tuple[str, str, list[Mutation]],
) -> None:
    """Name by name, of every pickle that both read to its end."""
    framing, payload, mutations_ = damage
    pickle = mutated(pickle_of(framing, payload), mutations_)
    asked, end = asked_by(pickle)
    trace = trace_pickle(BufferSource(pickle), 0, len(pickle), record="p")

    names = [f"{name.module} {name.name}" for name in trace.events if isinstance(name, Global)]

    if end is not None and trace.error is None:
        event("both")
        assert names == [use.name for use in asked if use.by in ("GLOBAL", "STACK_GLOBAL", "INST")]
        assert trace.end == end


# An answer or one of our errors, and at what price


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@settings(max_examples=300)
@given(damaged(HONEST + HOSTILE_FILES + PUBLISHED))
def test_no_damage_makes_a_verb_raise_anything_but_our_errors(
    folder: Path, damage: tuple[Sample, list[Mutation]]
) -> None:
    sample, mutations_ = damage
    path = folder / "model.ckpt"
    path.write_bytes(mutated(sample.data, mutations_))

    for verb in (scan, inspect, explain):
        with suppress(CkptauditError):
            verb(path, with_hash=False)
    with suppress(CkptauditError):
        convert(path, folder / "x.safetensors", with_hash=False, allow_unsafe=True, dry_run=True)

    assert [found.name for found in folder.iterdir()] == ["model.ckpt"]


@settings(max_examples=300)
@given(damaged(HONEST + HOSTILE_FILES + PUBLISHED))
def test_no_damage_makes_a_small_file_cost_much(damage: tuple[Sample, list[Mutation]]) -> None:
    """A length, a size or a count that lies is neither believed nor allocated."""
    sample, mutations_ = damage
    data = mutated(sample.data, mutations_)
    tracemalloc.start()
    try:
        container = opened(data)
        if container is not None:
            judge(container, misfits)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < MOST_MEMORY
    if container is not None and container.inside is not None:
        spent = container.inside.budget
        read = len(data) + spent.inflated
        assert spent.opcodes + spent.nodes + spent.events <= 3 * read
        assert spent.literals <= 100 * read


# Never clean


@settings(max_examples=300)
@given(damaged(HOSTILE_FILES + PUBLISHED))
def test_no_damage_takes_the_verdict_from_a_file_that_still_acts(
    damage: tuple[Sample, list[Mutation]],
) -> None:
    sample, mutations_ = damage
    data = mutated(sample.data, mutations_)
    container = opened(data)

    if still_acts(data):
        event("still acts")
        assert container is not None
        assert judge(container, misfits).verdict is Severity.MALICIOUS


@settings(max_examples=300)
@given(damaged_pickles())
def test_no_damage_to_a_pickle_takes_the_verdict_from_a_file_that_still_acts(
    damage: tuple[str, str, list[Mutation]],
) -> None:
    framing, payload, mutations_ = damage
    _, framed = FRAMINGS[framing]
    data = framed(mutated(pickle_of(framing, payload), mutations_))
    container = opened(data)

    if still_acts(data):
        event("still acts")
        assert container is not None
        assert judge(container, misfits).verdict is Severity.MALICIOUS


@settings(max_examples=250)
@given(damaged(HONEST))
def test_a_clean_file_asks_no_reader_for_a_name_that_is_not_in_the_answer(
    damage: tuple[Sample, list[Mutation]],
) -> None:
    sample, mutations_ = damage
    data = mutated(sample.data, mutations_)
    container = opened(data)
    judgement = judge(container, misfits) if container is not None else None

    if judgement is not None and judgement.verdict is Severity.CLEAN:
        event("clean")
        known = {f"{use.module} {use.name}" for use in judgement.globals if use.allowed}
        assert {asked.name for asked in uses_in(data)} <= known
