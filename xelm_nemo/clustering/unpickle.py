"""Values out of a foreign pickle, in a process of its own: python -c ... FOLDER FILE ...

Nothing that a pickle names is imported. Each name of a short list has a stand-in here, which keeps what it
is given; every other name ends it. What comes out is a tree of stand-ins, from which the caller's `extract`
takes numbers and words. Standard library only, so that there is little in the process that could be misused.
"""

import io
import math
import pickle
import struct
from dataclasses import dataclass, field
from typing import Any

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_SCALARS = {"i1": "b", "u1": "B", "i2": "h", "i4": "i", "i8": "q", "f4": "f", "f8": "d"}
_CODES = {*_SCALARS, "f2"}
_STORAGES = {"FloatStorage": "f4", "DoubleStorage": "f8", "HalfStorage": "f2", "LongStorage": "i8"}


class Refused(Exception):
    """A pickle holds what is not read; the message says what."""


class Foreign:
    """An object of a class that is not here: its attributes, and no behaviour."""

    def __init__(self, *args: Any) -> None:
        """Take and drop what the class would have been made with."""


class DType:
    """A numpy dtype: its letter and size, such as "f8"."""

    def __init__(self, code: str, *flags: Any) -> None:
        self.code = code
        if code not in _CODES:
            raise Refused(f"an array of numpy type {code!r:.80}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", "|"):
            raise Refused(f"an array in byte order {state[1]!r}")


@dataclass
class Array:
    """The bytes of an array."""

    code: str = ""
    shape: tuple[int, ...] = ()
    fortran: bool = False
    raw: bytes = field(default=b"", repr=False)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, dtype, self.fortran, self.raw = state
        self.code = dtype.code
        self.check()

    def check(self) -> "Array":
        """Refuse a shape that is none, or not that of the bytes."""
        sizes = self.shape if type(self.shape) is tuple else (None,)
        if not all(type(size) is int and size >= 0 for size in sizes) or type(self.raw) is not bytes:
            raise Refused(f"an array with the shape {self.shape!r:.80}")
        if self.code not in _CODES:
            raise Refused(f"an array of type {self.code!r:.80}")
        if len(self.raw) != math.prod(self.shape) * int(self.code[1:]):
            raise Refused(f"{len(self.raw)} bytes for an array {list(self.shape)} of {self.code}")
        return self


def _scalar(dtype: DType, raw: bytes) -> int | float:
    value: int | float = struct.unpack("<" + _SCALARS[dtype.code], raw)[0]
    return value


def _from_buffer(buffer: bytes, dtype: DType, shape: tuple[int, ...], order: str) -> Array:
    return Array(dtype.code, tuple(shape), order == "F", bytes(buffer)).check()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise Refused(f"bytes written as {encoding!r}")
    return text.encode("latin1")


def _storage(raw: bytes) -> Array:
    """What torch's `_load_from_bytes` would make of a storage in the format before zip files."""
    file = io.BytesIO(raw)
    head = [_Storages(file).load() for _ in range(2)]
    if head != [_TORCH_MAGIC, 1001]:
        raise Refused("a tensor that is not in torch's plain format")
    _, storage, _ = (_Storages(file).load() for _ in range(3))
    count = struct.unpack("<q", file.read(8))[0]
    return Array(storage.code, (count,), False, file.read()).check()


def _tensor(storage: Array, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Array:
    plain = tuple(math.prod(size[i + 1 :]) for i in range(len(size)))
    if tuple(stride) != plain or offset < 0:
        raise Refused(f"a tensor {list(size)} with strides {list(stride)}")
    width = int(storage.code[1:])
    first, last = offset * width, (offset + math.prod(size)) * width
    return Array(storage.code, tuple(size), False, storage.raw[first:last]).check()


def _class(name: str) -> type[Foreign]:
    return type(name, (Foreign,), {})


def _device(*args: Any) -> str:
    return ":".join(str(arg) for arg in args)


_NUMPY = {
    "ndarray": Array,
    "dtype": DType,
    **{name: name for name in ("float64", "float32", "int64", "int32")},
}
_MULTIARRAY = {"_reconstruct": lambda *args: Array(), "scalar": _scalar}
_VECTORIZER = _class("NumberNormalizingVectorizer")
_NAMES: dict[str, dict[str, Any]] = {
    "__main__": {"NumberNormalizingVectorizer": _VECTORIZER},
    "metaseq.scripts.train_clusterer": {"NumberNormalizingVectorizer": _VECTORIZER},
    "sklearn.pipeline": {"Pipeline": _class("Pipeline")},
    "sklearn.feature_extraction.text": {"TfidfTransformer": _class("TfidfTransformer")},
    "sklearn.decomposition._truncated_svd": {"TruncatedSVD": _class("TruncatedSVD")},
    "sklearn.preprocessing._data": {"Normalizer": _class("Normalizer")},
    "scipy.sparse._dia": {"dia_matrix": _class("dia_matrix")},
    "scipy.sparse.dia": {"dia_matrix": _class("dia_matrix")},
    "kmeans_pytorch": {"KMeans": _class("KMeans")},
    "numpy": _NUMPY,
    "numpy.core.multiarray": _MULTIARRAY,
    "numpy._core.multiarray": _MULTIARRAY,
    "numpy.core.numeric": {"_frombuffer": _from_buffer},
    "numpy._core.numeric": {"_frombuffer": _from_buffer},
    "_codecs": {"encode": _encode},
    "builtins": {"set": set, "frozenset": frozenset},
    "collections": {"OrderedDict": dict},
    "torch": {"device": _device},
    "torch._utils": {"_rebuild_tensor_v2": _tensor},
    "torch.storage": {"_load_from_bytes": _storage},
}


class Unpickler(pickle.Unpickler):
    """Reads a pickle that names nothing but what has a stand-in."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in."""
        stand_in = _NAMES.get(module, {}).get(name)
        if stand_in is None:
            raise Refused(f"{module}.{name}, which is not read")
        return stand_in

    def persistent_load(self, pid: Any) -> Any:
        """Nothing lies outside the file."""
        raise Refused("a reference to something outside the file")


class _Storages(Unpickler):
    """The same inside a tensor, where the one name is the type of a storage."""

    def find_class(self, module: str, name: str) -> Any:
        if module not in ("torch", "torch.cuda") or name not in _STORAGES:
            raise Refused(f"{module}.{name} inside a tensor, which is not read")
        return _STORAGES[name]

    def persistent_load(self, pid: Any) -> Any:
        kind, code = pid[0], pid[1]
        if kind != "storage" or code not in _STORAGES.values():
            raise Refused("a tensor that is not in torch's plain format")
        return Array(code)
