"""Laws of conversion that hold for whatever torch saves; torch and numpy are the judges."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import bits, converted, load, torch, written

from ckptaudit.jobs.convert import convert
from ckptaudit.jobs.verify import verify
from ckptaudit.plan import Dedupe, OnOverflow, Options, Precision

if TYPE_CHECKING:
    from ckptaudit.jobs.account import Conversion, TensorEntry

CAST = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
COPIED = (
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    *(torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16),
)
YOUNG = (torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16)
# Values that are hard to get right, as float64; every type takes of them what it can.
HARD = (0.0, -0.0, 1.0, 65504.0, 65519.99, 65520.0, -65520.0, 2.0**-24, 2.0**-25, 3e-8, -6.1e-5,
        1e-40, 3.3e38, 1e300, float("inf"), -float("inf"), float("nan"))  # fmt: skip


@st.composite
def values(draw: st.DrawFn) -> Any:
    """A tensor that owns its memory: plain weights, hard values or any bits at all."""
    dtype = draw(st.sampled_from(CAST + COPIED))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    numel = int(np.prod(shape, dtype=int))
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    kind = draw(st.sampled_from(["plain", "hard", "bits"]))
    if dtype is torch.bool:
        return (torch.randn(shape, generator=random) > 0).reshape(shape)
    if kind == "bits":
        size = torch.empty((), dtype=dtype).element_size()
        octets = torch.randint(0, 256, (numel * size,), generator=random, dtype=torch.uint8)
        return octets.view(dtype).reshape(shape)
    if dtype is torch.complex64:
        return torch.randn(shape, generator=random, dtype=dtype)
    if not dtype.is_floating_point:
        return torch.randint(0, 100, shape, generator=random).to(dtype)
    if kind == "plain":
        return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)
    picks = torch.randint(0, len(HARD), (numel,), generator=random)
    return torch.tensor(HARD, dtype=torch.float64)[picks].to(dtype).reshape(shape)


@st.composite
def views(draw: st.DrawFn, tensor: Any) -> Any:
    """Another tensor on the memory of *tensor*, or the tensor itself."""
    how = draw(st.sampled_from(["itself", "turned", "stepped", "cut", "expanded", "overlapping"]))
    if how == "turned" and tensor.dim() > 1:
        return tensor.permute(draw(st.permutations(range(tensor.dim()))))
    if how == "stepped" and tensor.dim():
        return tensor[:: draw(st.integers(2, 3))]
    if how == "cut" and tensor.dim():
        return tensor.narrow(-1, *draw(st.sampled_from(cuts(tensor.shape[-1]))))
    if how == "expanded":
        return tensor.unsqueeze(0).expand(3, *tensor.shape)
    if how == "overlapping" and tensor.numel() > 3:
        return torch.as_strided(tensor, (tensor.numel() - 2, 3), (1, 1))
    return tensor


def cuts(size: int) -> list[tuple[int, int]]:
    return [(start, stop - start) for start in range(size + 1) for stop in range(start, size + 1)]


@st.composite
def state_dicts(draw: st.DrawFn) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number in range(draw(st.integers(0, 4))):
        tensor = draw(values())
        for again in range(draw(st.integers(1, 3))):
            found[f"layer{number}.weight{again}"] = draw(views(tensor))
    if draw(st.booleans()) and found:
        found["again"] = next(iter(found.values()))
    return found


def converted_by_us(
    state_dict: dict[str, Any], options: Options, *, new_zip: bool, folder: str
) -> tuple[Conversion, Path, dict[str, Any]]:
    source, output = Path(folder) / "model.pt", Path(folder) / "model.safetensors"
    # torch writes younger types into the older framing, but does not read them from it.
    new_zip |= any(tensor.dtype in YOUNG for tensor in state_dict.values())
    torch.save(state_dict, source, _use_new_zipfile_serialization=new_zip)
    return convert(source, output, options), output, load(source)


def saved(tensor: Any, precision: Any) -> Any:
    """What is to be written for *tensor*: rounded once, or as it is if that is no number."""
    if tensor.dtype not in CAST:
        return tensor
    rounded = rounded_to(precision, tensor)
    return tensor if overflowing(tensor, rounded) else rounded


EIGHT = {
    Precision.FP8_E4M3FN: torch.float8_e4m3fn,
    Precision.FP8_E5M2: torch.float8_e5m2,
}


@given(state_dicts(), st.sampled_from(list(EIGHT)))
def test_eight_bits_are_written_where_every_weight_fits_and_nowhere_else(
    state_dict: dict[str, Any], precision: Precision
) -> None:
    """Of float64 torch rounds twice; that `floats` does not is shown elsewhere."""
    singles = {key: tensor for key, tensor in state_dict.items() if tensor.dtype != torch.float64}
    target = EIGHT[precision]
    # Both are ties: the one goes to 448, the other to infinity.
    tie, tie_fits = (464.0, True) if target is torch.float8_e4m3fn else (61440.0, False)
    with TemporaryDirectory() as folder:
        result, output, loaded = converted_by_us(
            singles, Options(precision=precision), new_zip=True, folder=folder
        )

        found = {key: from_bits(found) for key, found in converted(output).items()}
        told = {finding.record for finding in result.findings if finding.rule == "CKA301"}
        assert verify(Path(folder) / "model.pt", output).equal
    for key, tensor in loaded.items():
        size = tensor.float().abs() if tensor.dtype in CAST else torch.zeros(1)
        over = torch.isfinite(size) & ((size > tie) | ((size == tie) & (not tie_fits)))
        if tensor.dtype not in CAST or over.any():
            assert without_nan(found[key]) == without_nan(tensor)
        else:
            rounded = tensor.float().to(target).float()
            if target is torch.float8_e4m3fn:
                rounded = torch.where(torch.isinf(tensor), torch.nan, rounded)
            assert found[key].dtype is target
            assert without_nan(found[key].float()) == without_nan(rounded)
        stored_as = {entry.source for entry in result.tensors}
        assert (key in told) == (bool(over.any()) and key in stored_as)


def does_not_fit(tensor: Any) -> bool:
    return tensor.dtype in CAST and overflowing(tensor, rounded_to(torch.float16, tensor)) > 0


def rounded_to(precision: Any, tensor: Any) -> Any:
    if tensor.dtype is torch.float64 and precision is torch.float16:
        # torch rounds twice, by way of float32; numpy does not.
        with np.errstate(over="ignore", invalid="ignore"):
            return torch.from_numpy(np.asarray(tensor.numpy().astype(np.float16)))
    return tensor.to(precision)


def overflowing(tensor: Any, rounded: Any) -> int:
    return int((torch.isfinite(tensor) & torch.isinf(rounded)).sum())


def without_nan(tensor: Any) -> Any:
    """*tensor* with one NaN for all: which one a cast makes is the processor's affair."""
    if tensor.dtype not in CAST:
        return bits(tensor)
    nan = torch.full_like(tensor, float("nan"))
    return bits(torch.where(torch.isnan(tensor), nan, tensor))


def from_bits(found: Any) -> Any:
    name, shape, data = found
    flat = torch.frombuffer(bytearray(data or b"\0" * 16), dtype=getattr(torch, name[6:]))
    return flat[: int(np.prod(shape, dtype=int))].reshape(shape)


@given(state_dict=state_dicts(), new_zip=st.booleans(), dedupe=st.sampled_from(Dedupe))
def test_keeping_precision_keeps_every_bit(
    state_dict: dict[str, Any], *, new_zip: bool, dedupe: Dedupe
) -> None:
    options = Options(precision=Precision.KEEP, dedupe=dedupe)
    with TemporaryDirectory() as folder:
        result, output, loaded = converted_by_us(
            state_dict, options, new_zip=new_zip, folder=folder
        )

        assert converted(output) == {key: bits(tensor) for key, tensor in loaded.items()}
        assert len(result.tensors) + len(result.aliases) == len(loaded)
        assert result.dropped == ()
        assert verify(Path(folder) / "model.pt", output).equal


@given(state_dict=state_dicts(), new_zip=st.booleans())
def test_converting_rounds_as_torch_does_but_for_what_does_not_fit(
    state_dict: dict[str, Any], *, new_zip: bool
) -> None:
    """Never an infinity that was not there; each kept tensor is in a finding."""
    with TemporaryDirectory() as folder:
        result, output, loaded = converted_by_us(
            state_dict, Options(), new_zip=new_zip, folder=folder
        )
        found = {key: from_bits(found) for key, found in converted(output).items()}

        expected = {key: saved(tensor, torch.float16) for key, tensor in loaded.items()}
        assert {key: without_nan(tensor) for key, tensor in found.items()} == {
            key: without_nan(tensor) for key, tensor in expected.items()
        }
        kept = {entry.source for entry in result.tensors if does_not_fit(loaded[entry.source])}
        told = {finding.record for finding in result.findings if finding.rule == "CKA301"}
        assert told == kept
        assert verify(Path(folder) / "model.pt", output).equal


@given(state_dicts(), st.sampled_from([Precision.BF16, Precision.FP32]))
def test_other_targets_round_as_torch_does(
    state_dict: dict[str, Any], precision: Precision
) -> None:
    target = {Precision.BF16: torch.bfloat16, Precision.FP32: torch.float32}[precision]
    singles = {key: tensor for key, tensor in state_dict.items() if tensor.dtype != torch.float64}
    with TemporaryDirectory() as folder:
        _, output, loaded = converted_by_us(
            singles, Options(precision=precision), new_zip=True, folder=folder
        )

        found = {key: from_bits(found) for key, found in converted(output).items()}
        expected = {key: saved(tensor, target) for key, tensor in loaded.items()}
        assert {key: without_nan(tensor) for key, tensor in found.items()} == {
            key: without_nan(tensor) for key, tensor in expected.items()
        }


@given(state_dicts())
def test_clamping_writes_the_largest_number_and_no_new_infinity(
    state_dict: dict[str, Any],
) -> None:
    options = Options(on_overflow=OnOverflow.CLAMP, dedupe=Dedupe.NONE)
    with TemporaryDirectory() as folder:
        _, output, loaded = converted_by_us(state_dict, options, new_zip=True, folder=folder)

        for key, found in written(output).items():
            if loaded[key].dtype in CAST:
                assert found[0] == "torch.float16"
                there, given_ = from_bits(found), loaded[key]
                rounded = rounded_to(torch.float16, given_)
                over = torch.isfinite(given_) & torch.isinf(rounded)
                limit = torch.full_like(rounded, 65504.0).copysign(rounded)
                wanted = torch.where(over, limit, rounded)
                assert without_nan(there) == without_nan(wanted)
        assert verify(Path(folder) / "model.pt", output).equal


def counted(entry: TensorEntry, tensor: Any) -> dict[str, int | float | None]:
    """Numpy's statistics of *tensor* and of its cast."""
    before = tensor.to(torch.float64).numpy().reshape(-1)
    target = getattr(torch, entry.dtype)
    after = rounded_to(target, tensor).to(torch.float64).numpy().reshape(-1)
    finite = before[np.isfinite(before)]
    normal = float(torch.finfo(target).smallest_normal)
    return {
        "numel": before.size,
        "nan": int(np.isnan(before).sum()),
        "inf": int(np.isinf(before).sum()),
        "zeros": int((before == 0).sum()),
        "overflowed": int((np.isfinite(before) & np.isinf(after)).sum()),
        "flushed": int(((before != 0) & (after == 0)).sum()),
        "subnormal": int(((after != 0) & (np.abs(after) < normal)).sum()),
        "min": float(finite.min()) if finite.size else None,
        "max": float(finite.max()) if finite.size else None,
    }


@given(state_dicts(), st.sampled_from([Precision.FP16, Precision.KEEP]))
def test_counts_are_numpys(state_dict: dict[str, Any], precision: Precision) -> None:
    options = Options(precision=precision, dedupe=Dedupe.NONE)
    with TemporaryDirectory() as folder:
        result, _, loaded = converted_by_us(state_dict, options, new_zip=True, folder=folder)

    for entry in result.tensors:
        tensor = loaded[entry.source]
        if tensor.dtype in CAST:
            assert entry.stats is not None
            stats = {name: getattr(entry.stats, name) for name in counted(entry, tensor)}
            assert stats == counted(entry, tensor), entry


@settings(max_examples=20)
@given(state_dicts(), st.sampled_from(Dedupe), st.sampled_from(Precision))
def test_converting_twice_gives_the_same_bytes(
    state_dict: dict[str, Any], dedupe: Dedupe, precision: Precision
) -> None:
    options = Options(precision=precision, dedupe=dedupe)
    with TemporaryDirectory() as folder:
        first, output, _ = converted_by_us(state_dict, options, new_zip=True, folder=folder)
        before = output.read_bytes()
        again = convert(Path(folder) / "model.pt", output, options, overwrite=True)

        assert again == first
        assert output.read_bytes() == before


@pytest.mark.parametrize("new_zip", [True, False], ids=["zip", "legacy"])
def test_values_that_torch_changes_on_loading_are_dropped_and_named(
    tmp_path: Path, *, new_zip: bool
) -> None:
    """A lazily negated or conjugated tensor has other values in its storage than torch gives."""
    numbers = torch.arange(1, 4).float()
    lazy = {
        "imaginary": torch.complex(numbers, numbers).conj().imag,
        "conjugate": torch.complex(numbers, numbers).conj(),
        "plain": numbers,
    }
    for key in ("imaginary", "conjugate"):
        result, output, _ = converted_by_us(
            {key: lazy[key], "plain": numbers},
            Options(),
            new_zip=new_zip,
            folder=str(tmp_path_of(tmp_path, key)),
        )

        assert written(output).keys() == {"plain"}
        assert [drop.source for drop in result.dropped] == [key]


def tmp_path_of(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name
