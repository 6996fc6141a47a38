"""Plain data out of a pickle that somebody else made, without running what it says."""

import pickle
from pathlib import Path

import numpy as np

# What numpy's pickles refer to. Functions are wrapped anew for each file, since a pickle may set the attributes of what it is given.
ARRAY, SCALAR, BUFFER = np.empty(1).__reduce__()[0], np.float64(0).__reduce__()[0], np.empty(1).__reduce_ex__(5)[0]
PLAIN = (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset)


class Foreign(ValueError):
    """A pickle refers to something that is no plain data."""


def read_plain(file: Path):
    """What a pickle of Python's containers, numbers and strings and of numpy's arrays, types and scalars holds.

    Raises:
        ValueError: a file that is missing or damaged, or one that refers to anything else; the file and what it refers to are
            named, and nothing of it has run.
    """
    try:
        with open(file, "rb") as stream:
            return _Plain(stream, file).load()
    except Foreign:
        raise
    except Exception as error:  # a damaged pickle raises whatever it meets
        raise ValueError(f"{file}: missing, damaged or not a pickle ({type(error).__name__}: {error})") from error


class _Plain(pickle.Unpickler):
    def __init__(self, stream, file: Path):
        super().__init__(stream, encoding="latin1")  # Python 2 wrote strings and the bytes of arrays alike
        self.file = file
        self.known = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype, ("_codecs", "encode"): _latin1()}
        self.known |= {(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in PLAIN}
        for core in ("numpy.core", "numpy._core"):
            self.known[f"{core}.multiarray", "_reconstruct"] = lambda *parts: ARRAY(*parts)
            self.known[f"{core}.multiarray", "scalar"] = lambda *parts: SCALAR(*parts)
            self.known[f"{core}.numeric", "_frombuffer"] = lambda *parts: BUFFER(*parts)

    def find_class(self, module: str, name: str):
        if (module, name) not in self.known:
            raise Foreign(f"{self.file}: refers to {module}.{name}, accepts plain data and numpy's arrays alone")
        return self.known[module, name]


def _latin1():
    def encode(text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise ValueError(f"encoding: got {encoding!r}, accepts latin1")
        return text.encode("latin1")

    return encode
