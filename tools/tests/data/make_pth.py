#!/usr/bin/env python3
"""Makes the torch files in the folder `pth` beside this script, with PyTorch 2.15 and numpy.

    python3 make_pth.py

Every file holds the tensors of `weights()`: emb.weight counts up, the others go on from there. What
else a file holds, and how it is stored, is in its name.
"""

import argparse
import collections
import datetime
import pathlib
import zipfile

import numpy
import torch

FOLDER = pathlib.Path(__file__).parent / "pth"

SHAPES = {"emb.weight": (3, 4), "blocks.0.ln1.weight": (4,), "blocks.0.att.key.weight": (2, 3), "head.weight": (3, 2)}


def weights():
    first, tensors = 0, collections.OrderedDict()
    for name, shape in SHAPES.items():
        count = torch.Size(shape).numel()
        tensors[name] = torch.arange(first, first + count, dtype=torch.bfloat16).view(shape)
        first += count
    return tensors


def beside():
    """Values that trainers save beside the weights."""
    default = collections.defaultdict(list, {"loss": [1.5]})
    return {
        "size": torch.Size([1, 2]),
        "set": {1, 2},
        "frozenset": frozenset([3]),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "bytes": b"abc",
        "bytearray": bytearray(b"abc"),
        "complex": 1 + 2j,
        "counter": collections.Counter("aab"),
        "default": default,
        "deque": collections.deque([1, 2]),
        "step": torch.tensor(3),
        "mask": torch.tensor([True, False]),
        "rng": torch.arange(16, dtype=torch.uint8),
        "big": 2**70,
        "negative": -(2**70),
        "args": argparse.Namespace(n_layer=1, load_model="x.pth"),
        "scalar": numpy.float64(1.5),
        "array": numpy.arange(3),
        "path": pathlib.PurePosixPath("/x/y"),
        "date": datetime.datetime(2026, 1, 1),
        "range": range(3),
        "sparse": torch.eye(2).to_sparse(),
        "float8": torch.ones(2).to(torch.float8_e4m3fn),
    }


def save(name, value, **options):
    torch.save(value, FOLDER / f"{name}.pth", **options)


def turned(tensor):
    """The same values, stored with the last two dimensions swapped."""
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor


def with_attributes(tensor):
    tensor.note = "an attribute"
    return tensor


def in_one_storage(tensors):
    buffer = torch.zeros(5 + sum(t.numel() for t in tensors.values()), dtype=torch.bfloat16)
    views, at = {}, 5
    for name, tensor in tensors.items():
        views[name] = buffer[at : at + tensor.numel()].view(tensor.shape).copy_(tensor)
        at += tensor.numel()
    return views


def repack(name, to, compression, zip64=False):
    """Writes the entries of a file again."""
    with zipfile.ZipFile(FOLDER / f"{name}.pth") as old, zipfile.ZipFile(FOLDER / f"{to}.pth", "w", compression) as new:
        for entry in old.infolist():
            info = zipfile.ZipInfo(entry.filename)
            info.compress_type = compression
            with new.open(info, "w", force_zip64=zip64) as file:
                file.write(old.read(entry.filename))


def main():
    FOLDER.mkdir(exist_ok=True)
    for protocol in range(2, 6):
        save(f"beside-{protocol}", {**weights(), **beside()}, pickle_protocol=protocol)
    save("wrapped", {"model_state_dict": weights(), **beside(), "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}})
    save("parameters", {name: torch.nn.Parameter(tensor) for name, tensor in weights().items()})
    save("parameter-attributes", {n: with_attributes(torch.nn.Parameter(t)) for n, t in weights().items()})
    save("tensor-attributes", {name: with_attributes(tensor) for name, tensor in weights().items()})
    save("turned", {name: turned(tensor) for name, tensor in weights().items()})
    save("shared", in_one_storage(weights()))
    save("plain", weights())
    repack("plain", "zip64", zipfile.ZIP_STORED, zip64=True)
    repack("turned", "deflated", zipfile.ZIP_DEFLATED)
    for name, kind in [("float8", torch.float8_e4m3fn), ("int8", torch.int8)]:
        save(name, {**weights(), "blocks.0.att.key.weight": torch.ones(2, 3).to(kind)})
    save("sparse", {**weights(), "blocks.0.att.key.weight": torch.ones(2, 3).to_sparse()})
    save("module", torch.nn.Linear(2, 2))


if __name__ == "__main__":
    main()
