"""Add an architecture that forgec does not know: one function, compiled here and compared with llama.cpp.

python examples/add_an_architecture.py FOLDER

Orion is a llama with LayerNorm. ``orion`` below is all that it takes; in forgec itself it would be a module
of ``forgec/frontend/architectures`` and a row of its table. The example writes a tiny random Orion as GGUF,
sees it refused, compiles it for this CPU with the row added, and compares its logits with those of the
graph in NumPy and, where xllamacpp is installed, of llama.cpp.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import gguf
import numpy as np

from forgec import reference
from forgec.compiler import compile_model
from forgec.errors import UnsupportedModelError
from forgec.frontend.architectures import ARCHITECTURES, build_graph
from forgec.frontend.architectures.builders import AttentionForm, ModelBuilder, TensorTable
from forgec.frontend.gguf import open_gguf
from forgec.frontend.spec import ModelSpec, read_spec
from forgec.golden.llama_cpp import LlamaCpp
from forgec.ir import ops
from forgec.ir.graph import Graph
from forgec.package.loader import import_package
from forgec.plan.program import CompileOptions

TOKENS = [7, 99, 250, 3, 41, 8, 176, 60]
WIDTH, NETWORK, HEADS, VOCABULARY, CONTEXT = 64, 96, 4, 260, 32


def orion(table: TensorTable, spec: ModelSpec) -> Graph:
    """Layers of LayerNorm, attention with RoPE and SwiGLU. Source: llama.cpp, src/models/orion.cpp."""
    model = ModelBuilder(table, spec, norm="layer")
    form = AttentionForm(spec.rope)
    x = model.embedding()
    for layer in range(spec.block_count):
        block = model.layer(layer)
        x = block.add("attn_residual", x, block.attention(block.norm("attn_norm", x), form))
        x = block.add("ffn_residual", x, block.gated(block.norm("ffn_norm", x), ops.SiLU()))
    return model.head(x)


def write_tiny(path: Path) -> Path:
    """A GGUF file of two layers with random weights and a vocabulary of single bytes."""
    writer = gguf.GGUFWriter(path, "orion")
    writer.add_block_count(2)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(NETWORK)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_eps(1e-5)
    letters = [chr(byte if 33 <= byte <= 126 else 256 + byte) for byte in range(256)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["<s>", "</s>", "<unk>", *letters, "ab"])
    writer.add_token_types([3, 3, 3] + [1] * 257)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    rng = np.random.default_rng(0)
    norms = {f"{name}_norm.{part}": (WIDTH,) for name in ("attn", "ffn") for part in ("weight", "bias")}
    square = {f"attn_{name}.weight": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
    network = {"ffn_gate": (NETWORK, WIDTH), "ffn_up": (NETWORK, WIDTH), "ffn_down": (WIDTH, NETWORK)}
    layer = {**norms, **square, **{f"{name}.weight": shape for name, shape in network.items()}}
    shapes = {f"blk.{i}.{name}": shape for i in range(2) for name, shape in layer.items()}
    matrix, vector = (VOCABULARY, WIDTH), (WIDTH,)
    shapes |= {"token_embd.weight": matrix, "output.weight": matrix}
    shapes |= {"output_norm.weight": vector, "output_norm.bias": vector}
    for name, shape in shapes.items():
        writer.add_tensor(name, (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def main(folder: Path) -> None:
    model = write_tiny(folder / "orion.gguf")
    with open_gguf(model) as table:
        spec = read_spec(table)
        try:
            build_graph(table, spec)
        except UnsupportedModelError as error:
            print(f"without the row: {error.message}")
        weights = {name: table.array(name) for name in table.tensors}
        expected, _ = reference.run(orion(table, spec), weights.__getitem__, TOKENS)

    known = {**ARCHITECTURES, "orion": orion}
    options = CompileOptions(math="exact", context=CONTEXT, kv_dtype="f32")
    compile_model(model, "x86-64-v3", folder / "orion", options, architectures=known)
    with import_package(folder / "orion").load() as package:
        logits = package.logits(TOKENS)[-1]
    print(f"with it, from the graph in NumPy: {np.abs(logits - expected['logits'][0]).max():.0e}")
    if importlib.util.find_spec("xllamacpp") is not None:
        with LlamaCpp(model, context=CONTEXT, kv="f32") as oracle:
            print(f"and from llama.cpp: {np.abs(logits - oracle.decode(TOKENS)[0]).max():.0e}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
