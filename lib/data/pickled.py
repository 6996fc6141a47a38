"""Plain data from a pickle of unknown origin, without running any code in it."""

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

# The functions to which numpy's pickles refer. They are wrapped anew for each file, since a pickle may set attributes of its objects.
_REDUCED: tuple[Any, ...] = np.empty(1).__reduce__(), np.float64(0).__reduce__(), np.empty(1).__reduce_ex__(5)
ARRAY, SCALAR, BUFFER = (reduced[0] for reduced in _REDUCED)
PLAIN = (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset)


def read_plain(file: Path) -> Any:
    """The content of a pickle that holds Python's containers, numbers and strings, and numpy's arrays, types and scalars.

    Raises:
        ValueError: a file that is missing or damaged, or one that refers to anything else; the error names the file and the reference, and
            no code in the pickle has run.
    """
    try:
        with open(file, "rb") as stream:
            return _Plain(stream).load()
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{file}: {error} ({type(error).__name__}); missing, damaged or not a pickle of plain data") from error


class _Plain(pickle.Unpickler):
    def __init__(self, stream: BinaryIO):
        super().__init__(stream, encoding="latin1")  # Python 2 wrote strings and the bytes of arrays alike

        def encode(text: str, encoding: str) -> bytes:
            if encoding != "latin1":
                raise ValueError(f"encoding: got {encoding!r}, accepts latin1")
            return text.encode("latin1")

        self.accepted: dict[tuple[str, str], Any] = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
        self.accepted |= {("_codecs", "encode"): encode}
        self.accepted |= {(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in PLAIN}
        for core in ("numpy.core", "numpy._core"):
            self.accepted[f"{core}.multiarray", "_reconstruct"] = lambda *parts: ARRAY(*parts)
            self.accepted[f"{core}.multiarray", "scalar"] = lambda *parts: SCALAR(*parts)
            self.accepted[f"{core}.numeric", "_frombuffer"] = lambda *parts: BUFFER(*parts)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.accepted:
            raise ValueError(f"refers to {module}.{name}, accepts plain data and numpy's arrays alone")
        return self.accepted[module, name]
