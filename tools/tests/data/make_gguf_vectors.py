#!/usr/bin/env python3
"""Makes gguf_vectors.json in this folder with the `gguf` package 0.19 of llama.cpp.

    python3 make_gguf_vectors.py

Each block type has random blocks, and the values that the package's own numpy code decodes from them: bytes and
little-endian float32, as hexadecimal digits. Scales are small normal numbers of fp16, of both signs.
"""

import json
import pathlib

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize

HERE = pathlib.Path(__file__).parent

# Bytes of a block that hold an fp16 number.
HALVES = {
    Type.Q4_0: [0],
    Type.Q4_1: [0, 2],
    Type.Q5_0: [0],
    Type.Q5_1: [0, 2],
    Type.Q8_0: [0],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
    Type.IQ4_NL: [0],
    Type.IQ4_XS: [0],
}

vectors = {}
for kind, halves in HALVES.items():
    length, size = GGML_QUANT_SIZES[kind]
    count = 2 if length == 256 else 8
    rng = np.random.default_rng([20260101, int(kind)])
    blocks = rng.integers(0, 256, (count, size), np.uint8)
    for at in halves:
        scales = rng.uniform(0.001, 0.1, count) * rng.choice([-1, 1], count)
        blocks[:, at : at + 2] = scales.astype("<f2").view(np.uint8).reshape(count, 2)
    values = dequantize(blocks.reshape(-1), kind).astype("<f4")
    assert values.size == count * length
    vectors[kind.name] = {"type": int(kind), "blocks": blocks.tobytes().hex(), "values": values.tobytes().hex()}

lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(vector)}" for name, vector in vectors.items())
(HERE / "gguf_vectors.json").write_text(f"{{\n{lines}\n}}\n")
