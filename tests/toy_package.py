"""A hand-written package with toy kernels, to test the runtime without the compiler.

The toy "model" has a KV cache of token ids. Its next token is a letter chosen by a checksum over all cached
ids and their positions, so one wrong cache entry, row or position changes the text; ``expected_tokens`` says
what must come out. The kernels are one source for the CPU (a shared object) and NVIDIA GPUs (PTX).
"""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

ROOT = Path(__file__).resolve().parent.parent
VOCAB = 260  # 256 bytes, end of text, begin of text, two chat marks
END = 256
BEGIN = 257
TURN = 258
CONTEXT = 48
CHUNK = 5
RING = 16
WEIGHTS_BYTES = 3 * 4096 + 100
MULTIPLIER = 7
STATE = {
    "rows": 0, "position": 4, "row": 8, "token": 12, "step": 16, "seed_lo": 20, "seed_hi": 24,
    "temperature": 28, "top_k": 32, "top_p": 36, "ring_mask": 40,
}  # fmt: skip

SOURCE = r"""
typedef unsigned char u8; typedef int i32; typedef unsigned u32; typedef unsigned long long u64;
struct State { i32 rows, position, row, token; u32 step, seed_lo, seed_hi; float temperature; i32 top_k;
               float top_p; u32 ring_mask; u32 reserved[5]; };
static_assert(sizeof(State) == 64, "");
#ifdef __CUDA__
#define KERNEL(name, ...) extern "C" __attribute__((global)) void name(__VA_ARGS__)
#define DEVICE __attribute__((device))
#define BLOCK \
  int block = __nvvm_read_ptx_sreg_ctaid_x(), blocks = __nvvm_read_ptx_sreg_nctaid_x(); \
  if (__nvvm_read_ptx_sreg_tid_x() != 0) return;
#else
#define DEVICE static
#endif

// kv[position + row] = the row's token
DEVICE void append(State* s, const i32* tokens, i32* kv, i32 decode, int block, int blocks) {
  int rows = decode ? 1 : s->rows;
  for (int r = block; r < rows; r += blocks) kv[s->position + r] = decode ? s->token : tokens[r];
}
// hidden[row] = checksum of kv[0..position + row]; the multiplier lies in the weights
DEVICE void checksum(State* s, const u32* weights, const i32* kv, u32* hidden, i32 decode, int block,
                     int blocks) {
  int rows = decode ? 1 : s->rows;
  for (int r = block; r < rows; r += blocks) {
    u32 sum = 0;
    for (int p = 0; p <= s->position + r; ++p) sum = sum * weights[1024] + (u32)kv[p] * (p + 1);
    hidden[r] = sum >> 3;
  }
}
// logits fall with the distance from the chosen token: END for every 41st checksum, else a letter
DEVICE void head(State* s, const u32* hidden, float* logits, i32 vocab, float slope, int block,
                 int blocks) {
  u32 h = hidden[s->row];
  int target = h % 41 == 0 ? 256 : 97 + h % 26;
  for (int v = block; v < vocab; v += blocks) logits[v] = -slope * (v > target ? v - target : target - v);
}
// greedy, or with a temperature any function of seed and step that differs from greedy
DEVICE void sample(State* s, const float* logits, i32* ring, i32 vocab, int block, int blocks) {
  if (block != 0) return;
  int best = 0;
  for (int v = 1; v < vocab; ++v) if (logits[v] > logits[best]) best = v;
  if (s->temperature > 0) best = 65 + (s->seed_lo + s->seed_hi * 3 + s->step * 5 + s->top_k) % 26;
  s->token = best;
  ring[s->step & s->ring_mask] = best;
  s->step += 1; s->position += s->rows; s->rows = 1; s->row = 0;
}
#ifdef __CUDA__
KERNEL(toy_append, State* s, const i32* tokens, i32* kv, i32 decode) {
  BLOCK append(s, tokens, kv, decode, block, blocks);
}
KERNEL(toy_checksum, State* s, const u32* weights, const i32* kv, u32* hidden, i32 decode) {
  BLOCK checksum(s, weights, kv, hidden, decode, block, blocks);
}
KERNEL(toy_head, State* s, const u32* hidden, float* logits, i32 vocab, float slope) {
  BLOCK head(s, hidden, logits, vocab, slope, block, blocks);
}
KERNEL(toy_sample, State* s, const float* logits, i32* ring, i32 vocab) {
  BLOCK sample(s, logits, ring, vocab, block, blocks);
}
#else
#define P(type, offset) *(type const*)(kernarg + offset)
#define ENTRY(name) extern "C" void name(const u8* kernarg, int block, int blocks)
ENTRY(toy_append) {
  append(P(State*, 0), P(i32*, 8), P(i32*, 16), P(i32, 24), block, blocks);
}
ENTRY(toy_checksum) {
  checksum(P(State*, 0), P(u32*, 8), P(i32*, 16), P(u32*, 24), P(i32, 32), block, blocks);
}
ENTRY(toy_head) {
  head(P(State*, 0), P(u32*, 8), P(float*, 16), P(i32, 24), P(float, 28), block, blocks);
}
ENTRY(toy_sample) {
  sample(P(State*, 0), P(float*, 8), P(i32*, 16), P(i32, 24), block, blocks);
}
#endif
"""

CHAT_TEMPLATE = (
    "{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


def zig(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "ziglang", *map(str, arguments)], check=True, timeout=300)


def compile_c(source: str, *flags: str) -> bytes:
    """A shared object of C text, without any library."""
    with tempfile.TemporaryDirectory() as directory:
        path, output = Path(directory, "source.c"), Path(directory, "output.so")
        path.write_text(source)
        zig(
            "clang",
            "-target",
            "x86_64-linux-gnu",
            "-O2",
            "-fPIC",
            "-shared",
            "-nostdlib",
            *flags,
            path,
            "-o",
            output,
        )
        return output.read_bytes()


@functools.cache
def compiled(what: str) -> bytes:
    """The toy kernels ("cpu", "ptx") or the thread pool ("pool"), compiled once per test process."""
    if what == "pool":
        return compile_c(
            (ROOT / "templates/program/pool.cpu.c.j2").read_text(), "-Wall", "-Wextra", "-Werror"
        )
    if what == "cpu":
        return compile_c(SOURCE, "-x", "c++")
    with tempfile.TemporaryDirectory() as directory:
        source, output = Path(directory, "source.cu"), Path(directory, "output.ptx")
        source.write_text(SOURCE)
        device = ("--cuda-gpu-arch=sm_90", "--cuda-device-only", "-nocudainc", "-nocudalib")
        zig("clang", "-x", "cuda", *device, "-Wno-unknown-cuda-version", "-O2", "-S", source, "-o", output)
        return output.read_bytes()


def expected_tokens(prompt: Sequence[int], count: int, *, ignore_eos: bool = False) -> list[int]:
    """The greedy tokens of the toy model, END included."""
    cache, tokens = list(prompt), []
    for _ in range(count):
        total = 0
        for position, token in enumerate(cache):
            total = (total * MULTIPLIER + token * (position + 1)) % (1 << 32)
        total >>= 3
        token = END if total % 41 == 0 else 97 + total % 26
        tokens.append(token)
        cache.append(token)
        if token == END and not ignore_eos:
            break
    return tokens


def tokenizer_json() -> str:
    """One token per byte, ids equal to the bytes, and four control tokens."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    texts = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    model = tokenizers.models.BPE(vocab={texts[byte]: byte for byte in range(256)}, merges=[])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>", "<begin>", "<turn>", "<pad>"])
    return str(tokenizer.to_str())


#: Fill-in-the-middle ids of the toy vocabulary: "<turn>", "<pad>" and "<begin>".
FIM = {"prefix": 258, "suffix": 259, "middle": 257}


def tokenizer_section() -> dict[str, Any]:
    return {
        "model": "gpt2", "pre": "toy", "vocab_size": VOCAB, "byte_level": True, "bos_id": BEGIN,
        "eos_id": END,
        "eot_id": None, "unk_id": None, "pad_id": 259, "eog_ids": [END], "add_bos": False, "add_eos": False,
        "add_space_prefix": False, "special_ids": [[256, 259]], "literal_ids": [], "byte_ids": [],
        "silent_ids": [], "fim": FIM, "chat_template": CHAT_TEMPLATE,
        "chat_templates": {},
    }  # fmt: skip


_KERNELS = {
    "toy_append": ("state", "tokens", "kv", "=decode"),
    "toy_checksum": ("state", "weights", "kv", "hidden", "=decode"),
    "toy_head": ("state", "hidden", "logits", "=vocab", "=slope"),
    "toy_sample": ("state", "logits", "ring", "=vocab"),
}
_TARGETS = {"cpu": ("x86-64-v2", 1), "nvptx": ("sm_90", 32), "gfx11": ("gfx1100", 32)}
_PLACES = {"hidden": ["arena", 0], "logits": ["arena", 256]}


def _kernel(symbol: str, file: str, digest: str) -> dict[str, Any]:
    args, offset = [], 0
    for name in _KERNELS[symbol]:
        size = 4 if name.startswith("=") else 8
        kind = "value" if name.startswith("=") else "pointer"
        args.append({"name": name.lstrip("="), "offset": offset, "size": size, "kind": kind})
        offset += size
    return {
        "symbol": symbol, "file": file, "block": 32, "args": args, "kernarg_bytes": offset, "sha256": digest,
        "lds_bytes": 0, "vgprs": 0,
    }  # fmt: skip


def _launch(symbol: str, decode: int, grid: int) -> dict[str, Any]:
    values = {"=decode": decode, "=vocab": VOCAB, "=slope": 0.5}
    args = [values.get(name, _PLACES.get(name, [name, 0])) for name in _KERNELS[symbol]]
    return {"kernel": list(_KERNELS).index(symbol), "grid": grid, "args": args, "note": symbol}


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def manifest(family: str, kernel_file: str, digests: dict[str, str], weights: bytes) -> dict[str, Any]:
    name, wave = _TARGETS[family]
    return {
        "format": 1, "forgec": "0.1.0",
        "model": {
            "architecture": "toy", "name": "Toy", "vocab_size": VOCAB, "context_length": CONTEXT,
            "embedding_length": 1, "block_count": 1,
        },
        "math": "exact", "kv": "f16",
        "target": {"name": name, "family": family, "wave": wave, "title": "toy", "requires": []},
        "chunk": CHUNK, "ring": RING,
        "buffers": [
            {"name": "weights", "bytes": len(weights), "init": "file"},
            {"name": "kv", "bytes": 4 * CONTEXT, "init": "zero"},
            {"name": "arena", "bytes": 256 + 4 * VOCAB, "init": "none"},
            {"name": "state", "bytes": 64, "init": "zero"},
            {"name": "tokens", "bytes": 4 * CHUNK, "init": "none"},
            {"name": "ring", "bytes": 4 * RING, "init": "zero"},
        ],
        "kernels": [_kernel(symbol, kernel_file, digests[kernel_file]) for symbol in _KERNELS],
        "sequences": {
            "prefill": [_launch("toy_append", 0, 3), _launch("toy_checksum", 0, 3)],
            "head": [_launch("toy_head", 0, 4)],
            "sample": [_launch("toy_sample", 0, 1)],
            "decode": [
                _launch("toy_append", 1, 1), _launch("toy_checksum", 1, 1), _launch("toy_head", 1, 4),
                _launch("toy_sample", 1, 1),
            ],
        },
        "symbols": {"logits": ["arena", 256], "hidden": ["arena", 0]},
        "state": dict(STATE),
        "weights": {
            "file": "weights.bin", "bytes": len(weights), "chunk_bytes": 4096,
            "chunks": [_sha(weights[i : i + 4096]) for i in range(0, len(weights), 4096)],
        },
        "tokenizer": {**tokenizer_section(), "file": "tokenizer.json", "sha256": digests["tokenizer.json"]},
        "files": {path: digest for path, digest in digests.items() if path != kernel_file},
    }  # fmt: skip


def write_package(folder: Path, family: str = "cpu", *, with_runtime: bool = False) -> Path:
    """Write a whole package into ``folder``; ``with_runtime`` adds the runtime, so that Python can run it."""
    files: dict[str, bytes] = {"tokenizer.json": tokenizer_json().encode(), "src/toy.hip": SOURCE.encode()}
    kernel_file = {"cpu": "kernels/toy.so", "nvptx": "kernels/toy.ptx"}[family]
    files[kernel_file] = compiled({"cpu": "cpu", "nvptx": "ptx"}[family])
    if family == "cpu":
        files["kernels/pool.so"] = compiled("pool")
    if with_runtime:
        files |= {path.name: path.read_bytes() for path in sorted((ROOT / "runtime").glob("*.py"))}
    weights = bytearray(i * 31 % 251 for i in range(WEIGHTS_BYTES))
    weights[4096:4100] = MULTIPLIER.to_bytes(4, "little")
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    (folder / "weights.bin").write_bytes(weights)
    digests = {path: _sha(data) for path, data in files.items()}
    content = manifest(family, kernel_file, digests, bytes(weights))
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def use_other_kernels(package: Path, family: str, content: bytes) -> None:
    """Give a written package the target of ``family``, and ``content`` as its only kernel file."""
    path = package / "manifest.json"
    raw = json.loads(path.read_text())
    (package / "kernels/other").write_bytes(content)
    for kernel in raw["kernels"]:
        kernel.update(file="kernels/other", sha256=_sha(content))
    name, wave = _TARGETS[family]
    raw["target"].update(family=family, name=name, wave=wave)
    path.write_text(json.dumps(raw))


if __name__ == "__main__":  # python -m tests.toy_package FOLDER [FAMILY]
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    write_package(target, *sys.argv[2:3], with_runtime=True)
