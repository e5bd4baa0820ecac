#!/usr/bin/env python3
"""Checks GGUF input of rwkv-quantize against the `gguf` package of llama.cpp.

    python3 gguf_check.py [RWKV_QUANTIZE]

Needs the Python packages gguf and numpy, and says "skipped" without them. RWKV_QUANTIZE is target/release/rwkv-quantize by
default.

The package writes models of random weights, as llama.cpp's converter does for RWKV-6 and 7, with every element type that the
converter reads. Its numpy code quantizes the weights, or takes random blocks where it has no code for that, and decodes the
blocks. A safetensors file of the decoded weights in BlinkDL's form must become a model with the same tensor bytes. Last, the
package splits a model into parts.
"""

import json
import pathlib
import struct
import subprocess
import sys
import tempfile

try:
    import gguf
    import numpy as np
    from gguf.quants import dequantize, quantize
except ImportError as missing:
    sys.exit(print(f"skipped: {missing}"))

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUANTIZE = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "target/release/rwkv-quantize")
TYPE = gguf.GGMLQuantizationType
D, F, V, LAYERS, HEAD = 256, 512, 256, 8, 64
EVERY = 6  # layers after which RWKV-6 is halved
FLOATS = [TYPE.F32, TYPE.F16, TYPE.BF16]
# Bytes of a block that hold an fp16 number, for types that the package only decodes.
HALVES = {TYPE.Q4_K: [0, 2], TYPE.Q5_K: [0, 2], TYPE.Q6_K: [208], TYPE.IQ4_NL: [0], TYPE.IQ4_XS: [0]}
MATRICES = FLOATS + [TYPE.Q8_0, TYPE.Q4_0, TYPE.Q4_1, TYPE.Q5_0, TYPE.Q5_1, *HALVES]


def model(arch, rng):
    """BlinkDL's tensors, scaled so that nothing overflows."""
    shapes = {"emb.weight": (V, D), "blocks.0.ln0.weight": (D,), "blocks.0.ln0.bias": (D,)}
    for i in range(LAYERS):
        layer = {f"{n}.{w}": (D,) for n in ("ln1", "ln2", "att.ln_x") for w in ("weight", "bias")}
        layer |= {f"att.{n}.weight": (D, D) for n in ("receptance", "key", "value", "output")}
        layer |= {"ffn.key.weight": (F, D), "ffn.value.weight": (D, F)}
        if arch == "rwkv6":
            layer |= {f"att.time_maa_{m}": (1, 1, D) for m in "xwkvrg"}
            layer |= {"att.time_maa_w1": (D, 5 * 32), "att.time_maa_w2": (5, 32, D), "att.time_decay": (1, 1, D)}
            layer |= {"att.time_decay_w1": (D, 64), "att.time_decay_w2": (64, D), "att.time_faaaa": (D // HEAD, HEAD)}
            layer |= {"att.gate.weight": (D, D), "ffn.receptance.weight": (D, D)}
            layer |= {f"ffn.time_maa_{m}": (1, 1, D) for m in "kr"}
        else:
            layer |= {f"att.x_{m}": (1, 1, D) for m in "rwkvag"}
            layer |= {f"att.{n}": (1, 1, D) for n in ("w0", "a0", "k_k", "k_a")}
            layer |= {"att.r_k": (D // HEAD, HEAD), "ffn.x_k": (1, 1, D)}
            for n, rank in (("w", 64), ("a", 32), ("g", 256)) + ((("v", 96),) if i else ()):
                layer |= {f"att.{n}1": (D, rank), f"att.{n}2": (rank, D)}
            if i:
                layer["att.v0"] = (1, 1, D)
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in layer.items()}
    shapes |= {"ln_out.weight": (D,), "ln_out.bias": (D,), "head.weight": (V, D)}
    return {name: rng.normal(0, 0.1, shape).astype("<f4") for name, shape in shapes.items()}


def stored(arch, weights, kind, rng):
    """llama.cpp's tensors, as (name, data, type), and the weights in BlinkDL's form that they stand for."""
    tensors, kept = {}, {}

    def keep(name, x, kind, undo):
        if x.ndim < 2 or x.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] or kind == TYPE.F32:
            tensors[name] = (x, TYPE.F32)
            return undo(x)
        if kind in HALVES:
            length, size = gguf.GGML_QUANT_SIZES[kind]
            data = rng.integers(0, 256, (x.size // length, size), np.uint8)
            for at in HALVES[kind]:
                data[:, at : at + 2] = rng.uniform(1e-4, 1e-3, len(data)).astype("<f2").view(np.uint8).reshape(-1, 2)
            data = data.reshape(*x.shape[:-1], -1)
        else:
            data = quantize(x, kind)
        tensors[name] = (data, kind)
        return undo(dequantize(data, kind).reshape(x.shape).astype("<f4"))

    names = gguf.TENSOR_NAMES
    tensor = gguf.MODEL_TENSOR
    beside = {"emb.weight": tensor.TOKEN_EMBD, "head.weight": tensor.OUTPUT}
    norms = {"blocks.0.ln0": tensor.TOKEN_EMBD_NORM, "ln_out": tensor.OUTPUT_NORM}
    in_layer = {
        "ln1": tensor.ATTN_NORM, "ln2": tensor.ATTN_NORM_2, "att.ln_x": tensor.TIME_MIX_LN,
        "att.receptance": tensor.TIME_MIX_RECEPTANCE, "att.key": tensor.TIME_MIX_KEY, "att.value": tensor.TIME_MIX_VALUE,
        "att.output": tensor.TIME_MIX_OUTPUT, "att.gate": tensor.TIME_MIX_GATE, "ffn.key": tensor.CHANNEL_MIX_KEY,
        "ffn.value": tensor.CHANNEL_MIX_VALUE, "ffn.receptance": tensor.CHANNEL_MIX_RECEPTANCE,
        "att.time_maa_x": tensor.TIME_MIX_LERP_X, "att.time_maa_w1": tensor.TIME_MIX_W1, "att.time_maa_w2": tensor.TIME_MIX_W2,
        "att.time_decay": tensor.TIME_MIX_DECAY, "att.time_decay_w1": tensor.TIME_MIX_DECAY_W1,
        "att.time_decay_w2": tensor.TIME_MIX_DECAY_W2, "att.time_faaaa": tensor.TIME_MIX_FIRST,
        "ffn.time_maa_k": tensor.CHANNEL_MIX_LERP_K, "ffn.time_maa_r": tensor.CHANNEL_MIX_LERP_R,
        "ffn.x_k": tensor.CHANNEL_MIX_LERP_K, "att.k_k": tensor.TIME_MIX_K_K, "att.k_a": tensor.TIME_MIX_K_A,
        "att.r_k": tensor.TIME_MIX_R_K,
    }
    in_layer |= {f"att.{n}{i}": tensor[f"TIME_MIX_{n.upper()}{i}"] for n in "wav" for i in "012"}
    in_layer |= {f"att.g{i}": tensor[f"TIME_MIX_G{i}"] for i in "12"}
    mixes = [f"att.time_maa_{m}" for m in "wkvrg"] if arch == "rwkv6" else [f"att.x_{m}" for m in "rwkvag"]
    for full, x in weights.items():
        layer, local = full.split(".", 2)[1:] if full.startswith("blocks.") else (None, full)
        stem, _, ending = local.rpartition(".") if local.endswith(("weight", "bias")) else (local, "", "weight")
        if full in beside:
            kept[full] = keep(names[beside[full]] + ".weight", x, kind, lambda y: y)
        elif (norm := full.rpartition(".")[0]) in norms:
            kept[full] = keep(f"{names[norms[norm]]}.{ending}", x, kind, lambda y: y)
        elif local in mixes:
            if local == mixes[0]:
                stack = np.stack([weights[f"blocks.{layer}.{mix}"] for mix in mixes])
                tensors[names[tensor.TIME_MIX_LERP_FUSED].format(bid=layer) + ".weight"] = (stack, TYPE.F32)
            kept[full] = x
        else:
            name = f"{names[in_layer[stem]].format(bid=layer)}.{ending}"
            turned = stem.endswith(("1", "2")) and "ln" not in stem
            scale = np.float32(2 ** (int(layer) // EVERY if arch == "rwkv6" and stem in ("att.output", "ffn.value") else 0))
            y = np.ascontiguousarray(np.swapaxes(x, -1, -2)) if turned else x / scale
            small = stem.startswith("att.time_") or stem in ("att.w1", "att.w2")
            y = y.reshape(-1) if x.ndim == 3 and not turned or stem == "att.r_k" else y
            undo = lambda y, x=x, turned=turned, scale=scale: np.ascontiguousarray(
                np.swapaxes(y, -1, -2) if turned else (y * scale).reshape(x.shape))
            kept[full] = keep(name, y, TYPE.F32 if small else kind, undo)
            if layer == "0" and stem in ("att.a0", "att.a1", "att.a2"):
                tensors[name.replace("time_mix_a", "time_mix_v")] = tensors[name]
    return tensors, kept


def write(path, arch, tensors, **splits):
    writer = gguf.GGUFWriter(path, arch, **splits)
    writer.add_type("model")
    writer.add_context_length(1048576)
    writer.add_embedding_length(D)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(F)
    writer.add_layer_norm_eps(1e-5)
    writer.add_wkv_head_size(HEAD)
    writer.add_head_count(0)
    if arch == "rwkv6":
        writer.add_rescale_every_n_layers(EVERY)
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list(["<s>"] + [repr(bytes([i]))[2:-1] for i in range(1, V - 6)] + [f"[PAD{i}]" for i in range(V - 6, V)])
    writer.add_token_types([3] + [1] * (V - 7) + [5] * 6)
    writer.add_chat_template("rwkv-world")
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def safetensors(path, weights):
    header, data = {}, bytearray()
    for name, x in weights.items():
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [len(data), len(data) + x.nbytes]}
        data += x.astype("<f4").tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))


def convert(source, target, *options):
    """The sections of the converted model that hold its configuration and weights."""
    run = subprocess.run([QUANTIZE, source, target, "--force", *options], capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{source}: {run.stderr}")
    data, sections = target.read_bytes(), {}
    for i in range(struct.unpack_from("<I", data, 12)[0]):
        kind, _, offset, length = struct.unpack_from("<4sIQQ", data, 64 + 32 * i)
        sections[kind.decode()] = data[offset : offset + length]
    return [sections[kind] for kind in ("CONF", "TENS", "DATA")], "quantized before" in run.stderr


def main():
    rng = np.random.default_rng(20260101)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        out = folder / "out.rwkv"
        for arch in ("rwkv6", "rwkv7"):
            weights = model(arch, rng)
            for kind in MATRICES:
                tensors, kept = stored(arch, weights, kind, rng)
                write(folder / "in.gguf", arch, tensors)
                safetensors(folder / "in.safetensors", kept)
                expected, _ = convert(folder / "in.safetensors", out, "--type", "f32")
                found, warned = convert(folder / "in.gguf", out, "--type", "f32")
                if found != expected:
                    sys.exit(f"{arch} {kind.name}: the tensors differ")
                if warned != (kind not in FLOATS + [TYPE.Q8_0]):
                    sys.exit(f"{arch} {kind.name}: warned {warned}")
                print(f"{arch} {kind.name}: the same tensors")
            write(folder / "split.gguf", arch, tensors, split_max_tensors=50)
            parts = sorted(folder.glob("split-*.gguf"))
            if len(parts) < 2 or convert(parts[-1], out, "--type", "f32")[0] != expected:
                sys.exit(f"{arch}: {len(parts)} parts differ")
            print(f"{arch}: the same tensors from {len(parts)} parts")
            for part in parts:
                part.unlink()


main()
