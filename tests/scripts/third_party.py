#!/usr/bin/env python3
"""third_party.py: compares rwkv-edge with software that others wrote, from PyPI.

    python3 -m venv venv && venv/bin/pip install torch numpy rwkv==0.8.32 transformers safetensors tokenizers \\
        rwkv7-hf flash-linear-attention triton
    cargo build --release && venv/bin/python tests/scripts/third_party.py

- `rwkv` computes the logits of the fixtures of RWKV-4 to 7 in float32. The f32 files must agree.
- `transformers` makes an RWKV-4 with another epsilon and saves it as a folder. The folder must convert,
  and agree.
- `rwkv7-hf` makes an RWKV-7 with another epsilon and saves it as a folder. It also converts the fixture
  of RWKV-7 to a folder with a vocabulary. Both must convert, and agree.
- `fla` (flash-linear-attention) makes an RWKV-7 with another epsilon and saves it as a folder. Its kernels
  run in Triton's interpreter, so no GPU is needed.

Takes the programs from RWKV_QUANTIZE and RWKV_EDGE, or else from target/release. Names of comparisons
as arguments choose some of them. Software that is not installed is skipped by name.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUANTIZE = os.environ.get("RWKV_QUANTIZE", ROOT / "target/release/rwkv-quantize")
EDGE = os.environ.get("RWKV_EDGE", ROOT / "target/release/rwkv-edge")

TOKENS = [1, 77, 200, 13, 13, 0, 255, 128, 64, 5]

# Largest difference of logits, as a share of their range. Both sides compute in float32.
TOLERANCE = 1e-4


def converted_logits(folder, checkpoint):
    """The logits of a checkpoint that was converted to f32."""
    import numpy

    model = pathlib.Path(folder) / "model.rwkv"
    subprocess.run([QUANTIZE, checkpoint, model, "--type", "f32"], check=True, stderr=subprocess.DEVNULL)
    tokens = ",".join(map(str, TOKENS))
    run = subprocess.run([EDGE, "logits", model, "--tokens", tokens, "--binary"], check=True, capture_output=True)
    return numpy.frombuffer(run.stdout, "<f4")


def report(what, found, expected):
    """Prints the difference, and whether it is small enough."""
    error = float(abs(found - expected).max() / (expected.max() - expected.min()))
    print(f"{what}: largest difference {error:.1e} of the range", "" if error < TOLERANCE else "TOO LARGE")
    return error < TOLERANCE


def with_rwkv(version):
    """The fixture of one version by the package `rwkv`.

    The package normalises the embedding of RWKV-4 to 6 in the type of the checkpoint, so it gets float32."""
    import torch
    from rwkv.model import RWKV

    with tempfile.TemporaryDirectory() as folder:
        weights = torch.load(ROOT / f"tests/fixtures/{version}-tiny.pth")
        checkpoint = pathlib.Path(folder) / "wide.pth"
        torch.save({name: weight.float() for name, weight in weights.items()}, checkpoint)
        model = RWKV(model=str(checkpoint.with_suffix("")), strategy="cpu fp32")
        expected, _ = model.forward(TOKENS, None)
        return report(f"rwkv, {version}-tiny.pth", converted_logits(folder, checkpoint), expected.numpy())


def logits_of(model):
    """The logits after the last token by a model of transformers."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([TOKENS]), use_cache=False).logits[0, -1].numpy()


def saved(what, model):
    """A model of transformers with random weights, saved as a folder.

    The small embedding makes the epsilon of the first normalisation count."""
    import torch

    model.eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        model.get_input_embeddings().weight.mul_(0.1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = pathlib.Path(folder) / "saved"
        model.save_pretrained(checkpoint)
        return report(what, converted_logits(folder, checkpoint), logits_of(model))


def with_transformers():
    """An RWKV-4 of transformers whose epsilon only config.json has."""
    import torch
    from transformers import RwkvConfig, RwkvForCausalLM

    torch.manual_seed(0)
    config = RwkvConfig(
        vocab_size=256, hidden_size=64, num_hidden_layers=3, intermediate_size=96, layer_norm_epsilon=1e-3, rescale_every=0
    )
    return saved("transformers, RwkvForCausalLM", RwkvForCausalLM(config))


# An RWKV-7 whose epsilon only config.json has.
SHAPE_7 = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "head_dim": 16,
    "decay_low_rank_dim": 8,
    "gate_low_rank_dim": 16,
    "a_low_rank_dim": 8,
    "v_low_rank_dim": 8,
    "norm_eps": 1e-3,
    "fuse_norm": False,
}


def with_rwkv7_hf():
    """An RWKV-7 of rwkv7-hf."""
    import torch
    from rwkv7_hf import RWKV7Config, RWKV7ForCausalLM

    torch.manual_seed(0)
    return saved("rwkv7-hf, RWKV7ForCausalLM", RWKV7ForCausalLM(RWKV7Config(**SHAPE_7)))


def with_rwkv7_hf_convert():
    """The fixture of RWKV-7 as a folder that the converter of rwkv7-hf wrote, with a vocabulary of bytes."""
    from rwkv7_hf import RWKV7ForCausalLM
    from rwkv7_hf.cli import main as rwkv7_hf

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        vocabulary, checkpoint = folder / "vocabulary.txt", folder / "saved"
        vocabulary.write_text("".join(f"{byte + 1} {bytes([byte])!r} 1\n" for byte in range(255)))
        fixture = ["--input", str(ROOT / "tests/fixtures/v7-tiny.pth"), "--vocab-file", str(vocabulary)]
        rwkv7_hf(["convert", *fixture, "--output", str(checkpoint), "--precision", "fp32"])
        expected = logits_of(RWKV7ForCausalLM.from_pretrained(checkpoint).eval())
        return report("rwkv7-hf convert, v7-tiny.pth", converted_logits(folder, checkpoint), expected)


def with_fla():
    """An RWKV-7 of flash-linear-attention. Its kernels take their first configuration: timing needs a GPU."""
    import torch
    from triton.runtime.autotuner import Autotuner

    Autotuner._bench = lambda *_, **__: [1.0, 1.0, 1.0]
    from fla.models.rwkv7 import RWKV7Config, RWKV7ForCausalLM

    torch.manual_seed(0)
    config = RWKV7Config(**SHAPE_7, fuse_cross_entropy=False)
    return saved("flash-linear-attention, RWKV7ForCausalLM", RWKV7ForCausalLM(config))


# Each comparison: its package, its function, and the variables that the package reads at import.
FOR_RWKV = {"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}
COMPARISONS = {
    **{
        version: ("rwkv", lambda version=version: with_rwkv(version), {"RWKV_V7_ON": is_7, **FOR_RWKV})
        for version, is_7 in {"v4": "0", "v5.0": "0", "v5.1": "0", "v5.2": "0", "v6": "0", "v7": "1"}.items()
    },
    "transformers": ("transformers", with_transformers, {}),
    "rwkv7-hf": ("rwkv7_hf", with_rwkv7_hf, {}),
    "rwkv7-hf-convert": ("rwkv7_hf", with_rwkv7_hf_convert, {}),
    "fla": ("fla", with_fla, {"TRITON_INTERPRET": "1"}),
}


def in_own_process(name):
    """Runs one comparison with the variables that its package reads, and prints its result."""
    package, _, variables = COMPARISONS[name]
    if not importlib.util.find_spec(package):
        print(f"skipped: {name}, {package} is not installed")
        return True
    environment = {**os.environ, **variables, "THIRD_PARTY_ONE": name}
    run = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    results = [line for line in run.stdout.splitlines() if "largest difference" in line]
    print(*results or [f"{name}: {run.stderr.strip()[-300:]}"], sep="\n", flush=True)
    return run.returncode == 0


def main():
    if one := os.environ.get("THIRD_PARTY_ONE"):
        return 0 if COMPARISONS[one][1]() else 1
    return 0 if all([in_own_process(name) for name in sys.argv[1:] or COMPARISONS]) else 1


sys.exit(main())
