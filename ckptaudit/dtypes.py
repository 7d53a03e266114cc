"""One table of element types: torch's names, numpy's, safetensors' codes, sizes.

Knows:      what an element type is called in each world and how wide it is.
Is told:    a name from one of those worlds.
Never asks: for numpy or torch.  ``numpy`` is a dtype *string*, so that `scan`
            can size a storage without importing anything.

Sources: torch/_utils.py and torch/storage.py (storage class names), c10/core/ScalarType.h
(names and widths), safetensors/src/tensor.rs (codes).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["DTYPES", "DType", "Kind", "by_name", "by_safetensors", "by_storage", "named"]


class Kind(str, Enum):
    """What the bits of an element mean."""

    FLOAT = "float"
    INTEGER = "integer"
    BOOL = "bool"
    COMPLEX = "complex"
    QUANTISED = "quantised"


@dataclass(frozen=True, slots=True)
class DType:
    """An element type.

    Attributes:
        name: torch's name, such as ``bfloat16``.
        kind: What the bits mean.
        itemsize: Bytes per element.
        numpy: Little-endian numpy dtype string with the same bits; an unsigned
            integer of the same width where numpy has no such type.
        safetensors: The code in a safetensors header, or None if it has none.
        storages: Names of torch's storage classes of this type, without module.
    """

    name: str
    kind: Kind
    itemsize: int
    numpy: str
    safetensors: str | None
    storages: tuple[str, ...] = ()

    @property
    def is_float(self) -> bool:
        """Whether elements are real floating-point numbers, the only ones ever cast."""
        return self.kind is Kind.FLOAT


DTYPES: tuple[DType, ...] = (
    DType("float64", Kind.FLOAT, 8, "<f8", "F64", ("DoubleStorage",)),
    DType("float32", Kind.FLOAT, 4, "<f4", "F32", ("FloatStorage",)),
    DType("float16", Kind.FLOAT, 2, "<f2", "F16", ("HalfStorage",)),
    DType("bfloat16", Kind.FLOAT, 2, "<u2", "BF16", ("BFloat16Storage",)),
    DType("float8_e4m3fn", Kind.FLOAT, 1, "|u1", "F8_E4M3"),
    DType("float8_e5m2", Kind.FLOAT, 1, "|u1", "F8_E5M2"),
    DType("float8_e4m3fnuz", Kind.FLOAT, 1, "|u1", "F8_E4M3FNUZ"),
    DType("float8_e5m2fnuz", Kind.FLOAT, 1, "|u1", "F8_E5M2FNUZ"),
    DType("float8_e8m0fnu", Kind.FLOAT, 1, "|u1", "F8_E8M0"),
    DType("int64", Kind.INTEGER, 8, "<i8", "I64", ("LongStorage",)),
    DType("int32", Kind.INTEGER, 4, "<i4", "I32", ("IntStorage",)),
    DType("int16", Kind.INTEGER, 2, "<i2", "I16", ("ShortStorage",)),
    DType("int8", Kind.INTEGER, 1, "|i1", "I8", ("CharStorage",)),
    DType("uint64", Kind.INTEGER, 8, "<u8", "U64"),
    DType("uint32", Kind.INTEGER, 4, "<u4", "U32"),
    DType("uint16", Kind.INTEGER, 2, "<u2", "U16"),
    DType("uint8", Kind.INTEGER, 1, "|u1", "U8", ("ByteStorage",)),
    DType("bool", Kind.BOOL, 1, "|b1", "BOOL", ("BoolStorage",)),
    DType("complex64", Kind.COMPLEX, 8, "<c8", "C64", ("ComplexFloatStorage",)),
    DType("complex128", Kind.COMPLEX, 16, "<c16", None, ("ComplexDoubleStorage",)),
    DType("qint8", Kind.QUANTISED, 1, "|i1", None, ("QInt8Storage",)),
    DType("quint8", Kind.QUANTISED, 1, "|u1", None, ("QUInt8Storage",)),
    DType("qint32", Kind.QUANTISED, 4, "<i4", None, ("QInt32Storage",)),
    # Two and four elements to the byte: torch gives them an itemsize of 1 all the same.
    DType("quint4x2", Kind.QUANTISED, 1, "|u1", None, ("QUInt4x2Storage",)),
    DType("quint2x4", Kind.QUANTISED, 1, "|u1", None, ("QUInt2x4Storage",)),
)

_BY_NAME = {dtype.name: dtype for dtype in DTYPES}
_BY_SAFETENSORS = {dtype.safetensors: dtype for dtype in DTYPES if dtype.safetensors}
_BY_STORAGE = {storage: dtype for dtype in DTYPES for storage in dtype.storages}


def named(name: str) -> DType:
    """The element type torch calls *name*, for names that stand in the code.

    Raises:
        KeyError: There is none.
    """
    return _BY_NAME[name]


def by_name(name: str) -> DType | None:
    """The element type that a file calls *name* (``float32``), as torch does, or None."""
    return _BY_NAME.get(name)


def by_safetensors(code: str) -> DType | None:
    """The element type with safetensors code *code* (``F32``), or None."""
    return _BY_SAFETENSORS.get(code)


def by_storage(class_name: str) -> DType | None:
    """The element type of torch's storage class *class_name* (``FloatStorage``), or None."""
    return _BY_STORAGE.get(class_name)
