"""Tensors in files: what is written comes back, and any flipped bit is noticed."""

import random

import torch
from safetensors.torch import save_file

from lib.tensors import load_tensors, save_tensors

TENSORS = {
    "half": torch.arange(6).half().view(2, 3),
    "bytes": torch.arange(200, dtype=torch.uint8),
    "scalar": torch.tensor(3),
    "bfloat16": torch.ones(2, 2).bfloat16(),
    "transposed": torch.arange(6.0).view(2, 3).T,
    "empty": torch.empty(0, 4),
    "truth": torch.tensor([True, False]),
}


def test_tensors_and_words_come_back(tmp_path):
    save_tensors(tmp_path / "deep" / "file", TENSORS, {"config": "{}"})
    tensors, words = load_tensors(tmp_path / "deep" / "file")
    assert words == {"config": "{}"} and tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype


def test_files_without_a_checksum_are_read(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "file", metadata={"by": "others"})
    assert load_tensors(tmp_path / "file")[1] == {"by": "others"}


def test_every_flipped_bit_is_noticed(tmp_path):
    file, generator = tmp_path / "file", random.Random(0)
    save_tensors(file, TENSORS, {"config": "{}"})
    whole = file.read_bytes()
    for _ in range(400):
        place, bit = generator.randrange(len(whole)), generator.randrange(8)
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        try:
            tensors, words = load_tensors(file)
        except ValueError as error:
            assert str(file) in str(error)
        else:  # a bit of the padding, or of the checksum's own name
            assert words.items() >= {"config": "{}"}.items() and all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
