#!/usr/bin/env python3
"""third_party.py: compares rwkv-edge with software that others wrote, from PyPI.

    python3 -m venv venv && venv/bin/pip install torch numpy rwkv==0.8.32 transformers safetensors tokenizers
    cargo build --release && venv/bin/python tests/scripts/third_party.py

- `rwkv` computes the logits of the fixtures of RWKV-4 to 7 in float32. The f32 files must agree.
- `transformers` makes an RWKV-4 with another epsilon and saves it as a folder. The folder must convert,
  and agree.

Takes the programs from RWKV_QUANTIZE and RWKV_EDGE, or else from target/release. Software that is not
installed is skipped by name.
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

# Fixtures that `rwkv` reads: RWKV-7 needs a variable that counts at import.
FIXTURES = {"v4": "0", "v5.0": "0", "v5.1": "0", "v5.2": "0", "v6": "0", "v7": "1"}


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


def with_transformers():
    """An RWKV-4 of transformers whose epsilon only config.json has."""
    import torch
    from transformers import RwkvConfig, RwkvForCausalLM

    torch.manual_seed(0)
    config = RwkvConfig(
        vocab_size=256, hidden_size=64, num_hidden_layers=3, intermediate_size=96, layer_norm_epsilon=1e-3, rescale_every=0
    )
    model = RwkvForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        model.rwkv.embeddings.weight.mul_(0.1)
        expected = model(torch.tensor([TOKENS])).logits[0, -1].numpy()
    with tempfile.TemporaryDirectory() as folder:
        saved = pathlib.Path(folder) / "saved"
        model.save_pretrained(saved)
        return report("transformers, RwkvForCausalLM", converted_logits(folder, saved), expected)


def main():
    if len(sys.argv) == 2:
        return 0 if with_rwkv(sys.argv[1]) else 1
    right = True
    if importlib.util.find_spec("rwkv"):
        for version, is_7 in FIXTURES.items():
            environment = {**os.environ, "RWKV_V7_ON": is_7, "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}
            run = subprocess.run([sys.executable, __file__, version], env=environment, capture_output=True, text=True)
            lines = run.stdout.splitlines()
            print(lines[-1] if run.returncode in (0, 1) and lines else f"rwkv, {version}: {run.stderr.strip()[-300:]}")
            right &= run.returncode == 0
    else:
        print("skipped: rwkv is not installed")
    if importlib.util.find_spec("transformers"):
        right &= with_transformers()
    else:
        print("skipped: transformers is not installed")
    return 0 if right else 1


sys.exit(main())
