"""Small GGUF files for tests, written with the ``gguf`` package: any metadata and tensors, or a tiny model.

``RawGGUF`` builds files byte by byte instead, so that tests can write what no sane writer would.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import libgguf
import numpy as np
import pytest

from forgec.errors import ForgeError, GGUFError
from forgec.frontend import open_gguf

BYTE_TOKENS = 256
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Encoded:
    """A tensor already quantised: ``data`` is uint8 [rows, bytes per row]."""

    data: np.ndarray
    type_name: str


def encode(array: np.ndarray, type_name: str) -> np.ndarray | Encoded:
    """Quantise float32 [..., columns] to any GGML type; K and IQ types through libgguf."""
    if type_name == "F32":
        return np.ascontiguousarray(array, np.float32)
    if type_name == "F16":
        return np.ascontiguousarray(array, np.float16)
    kind = gguf.GGMLQuantizationType[type_name]
    array = np.ascontiguousarray(array, np.float32)
    try:
        return Encoded(gguf.quants.quantize(array, kind), type_name)
    except NotImplementedError:
        rows = array.reshape(-1, array.shape[-1])
        importance = np.ones(rows.shape[1], np.float32)
        data = libgguf.quantize_rows(rows, kind, importance).reshape(*array.shape[:-1], -1)
        return Encoded(data.view(np.uint8), type_name)


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray | Encoded] | None = None,
    per_shard: int = 0,
) -> Path:
    """Write a file. int becomes uint32 (int32 when negative), float float32; lists become arrays.

    With ``per_shard`` tensors a file the model is split, and the path of the first shard is returned.
    """
    architecture = metadata.get("general.architecture", "llama")
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=per_shard)
    for key, value in metadata.items():
        if key != "general.architecture":
            _add(writer, key, value)
    for name, tensor in (tensors or {}).items():
        if isinstance(tensor, Encoded):
            writer.add_tensor(name, tensor.data, raw_dtype=gguf.GGMLQuantizationType[tensor.type_name])
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return next(iter(sorted(path.parent.glob(f"{path.stem}-00001-of-*.gguf")))) if per_shard else path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        (writer.add_int32 if value < 0 else writer.add_uint32)(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))


def byte_unicode() -> list[str]:
    """GPT-2's printable stand-in for each of the 256 bytes."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    stand_ins, spare = [], 256
    for byte in range(256):
        if byte in printable:
            stand_ins.append(chr(byte))
        else:
            stand_ins.append(chr(spare))
            spare += 1
    return stand_ins


def bpe_vocabulary(vocab_size: int, pre: str = "smollm") -> dict[str, Any]:
    """Tokenizer metadata: 3 control tokens, 256 bytes, then merges of two letters ('aa', 'ab', …)."""
    tokens = [*SPECIAL_TOKENS, *byte_unicode()]
    pairs = [(a, b) for a in "etaoinshrdlucmfwypvbgkjqxz" for b in "etaoinshrdlucmfwypvbgkjqxz"]
    merges = pairs[: vocab_size - len(tokens)]
    if len(tokens) + len(merges) != vocab_size:
        raise ValueError(f"vocab_size must be {len(tokens)} to {len(tokens) + len(pairs)}")
    tokens += [a + b for a, b in merges]
    types = [3] * len(SPECIAL_TOKENS) + [1] * (vocab_size - len(SPECIAL_TOKENS))
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
    }
    if merges:
        metadata["tokenizer.ggml.merges"] = [f"{a} {b}" for a, b in merges]
    return metadata


@dataclass(frozen=True)
class TinyModel:
    """Shapes of a small decoder; ``write`` fills it with random weights.

    ``quant`` is the type of all matrices except those named in ``quants`` (name to type). Norms are F32.
    ``metadata`` entries replace or extend the generated ones; a value of None removes the key.
    """

    architecture: str = "llama"
    block_count: int = 2
    embedding_length: int = 64
    feed_forward_length: int = 96
    head_count: int = 4
    head_count_kv: int = 2
    key_length: int = 16
    vocab_size: int = 288
    context_length: int = 128
    tied: bool = False
    quant: str = "F32"
    quants: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, np.ndarray | Encoded | None] = field(default_factory=dict)

    def all_metadata(self) -> dict[str, Any]:
        prefix = self.architecture
        values: dict[str, Any] = {
            "general.architecture": prefix,
            "general.name": f"tiny {prefix}",
            f"{prefix}.block_count": self.block_count,
            f"{prefix}.context_length": self.context_length,
            f"{prefix}.embedding_length": self.embedding_length,
            f"{prefix}.feed_forward_length": self.feed_forward_length,
            f"{prefix}.attention.head_count": self.head_count,
            f"{prefix}.attention.head_count_kv": self.head_count_kv,
            f"{prefix}.attention.key_length": self.key_length,
            f"{prefix}.attention.value_length": self.key_length,
            f"{prefix}.attention.layer_norm_rms_epsilon": 1e-5,
            f"{prefix}.rope.dimension_count": self.key_length,
            f"{prefix}.rope.freq_base": 10000.0,
            f"{prefix}.vocab_size": self.vocab_size,
            **bpe_vocabulary(self.vocab_size),
            **self.metadata,
        }
        return {key: value for key, value in values.items() if value is not None}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name to NumPy shape, in file order."""
        hidden, ff = self.embedding_length, self.feed_forward_length
        queries, keys = self.head_count * self.key_length, self.head_count_kv * self.key_length
        shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (self.vocab_size, hidden)}
        for layer in range(self.block_count):
            block = f"blk.{layer}."
            shapes[block + "attn_norm.weight"] = (hidden,)
            shapes[block + "attn_q.weight"] = (queries, hidden)
            shapes[block + "attn_k.weight"] = (keys, hidden)
            shapes[block + "attn_v.weight"] = (keys, hidden)
            if self.architecture == "qwen2":
                shapes[block + "attn_q.bias"] = (queries,)
                shapes[block + "attn_k.bias"] = (keys,)
                shapes[block + "attn_v.bias"] = (keys,)
            if self.architecture == "qwen3":
                shapes[block + "attn_q_norm.weight"] = (self.key_length,)
                shapes[block + "attn_k_norm.weight"] = (self.key_length,)
            shapes[block + "attn_output.weight"] = (hidden, queries)
            shapes[block + "ffn_norm.weight"] = (hidden,)
            shapes[block + "ffn_gate.weight"] = (ff, hidden)
            shapes[block + "ffn_up.weight"] = (ff, hidden)
            shapes[block + "ffn_down.weight"] = (hidden, ff)
        shapes["output_norm.weight"] = (hidden,)
        if not self.tied:
            shapes["output.weight"] = (self.vocab_size, hidden)
        return shapes

    def write(self, path: Path, rng: np.random.Generator | None = None, per_shard: int = 0) -> Path:
        """Write the model; matrices are N(0, 1/columns), norms close to 1, biases small."""
        rng = rng or np.random.default_rng(0)
        tensors: dict[str, np.ndarray | Encoded] = {}
        for name, shape in self.shapes().items():
            values = rng.standard_normal(shape, np.float32)
            if len(shape) > 1:
                kind = self.quants.get(name, self.quant)
                tensors[name] = encode(values / np.float32(np.sqrt(shape[-1])), kind)
            else:
                tensors[name] = values * np.float32(0.1) + np.float32("norm" in name)
        for name, extra in self.tensors.items():
            if extra is None:
                del tensors[name]
            else:
                tensors[name] = extra
        return write_gguf(path, self.all_metadata(), tensors, per_shard)


def refusal(path: Path, kind: type[ForgeError] = GGUFError) -> tuple[str, str]:
    """(message, hint) with which opening the file is refused."""
    with pytest.raises(kind) as caught:
        open_gguf(path)
    assert type(caught.value) is kind
    return caught.value.message, caught.value.hint


def string_bytes(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value_bytes(kind: int, payload: bytes) -> bytes:
    return struct.pack("<I", kind) + payload


def array_bytes(kind: int, items: Sequence[bytes], count: int | None = None) -> bytes:
    """The payload of an array value; ``count`` may lie about the number of items."""
    return struct.pack("<IQ", kind, len(items) if count is None else count) + b"".join(items)


def u32_value(value: int) -> bytes:
    return value_bytes(4, struct.pack("<I", value))


def text_value(value: str | bytes) -> bytes:
    return value_bytes(8, string_bytes(value))


@dataclass
class RawGGUF:
    """A GGUF file as its parts, any of which a test may falsify before ``build``.

    ``keys`` holds (name, encoded value with its type), ``tensors`` (name, ggml dims, type id, offset).
    """

    magic: bytes = b"GGUF"
    version: int = 3
    keys: list[tuple[str | bytes, bytes]] = field(default_factory=list)
    tensors: list[tuple[str | bytes, tuple[int, ...], int, int]] = field(default_factory=list)
    data: bytes = b""
    alignment: int = 32
    key_count: int | None = None
    tensor_count: int | None = None

    def header(self) -> bytes:
        """Everything in front of the data section, without the padding."""
        tensor_count = len(self.tensors) if self.tensor_count is None else self.tensor_count
        key_count = len(self.keys) if self.key_count is None else self.key_count
        parts = [self.magic, struct.pack("<IQQ", self.version, tensor_count, key_count)]
        parts += [string_bytes(name) + value for name, value in self.keys]
        for name, dims, kind, offset in self.tensors:
            parts.append(
                string_bytes(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
            )
        return b"".join(parts)

    def build(self) -> bytes:
        header = self.header()
        return header + bytes(-len(header) % self.alignment) + self.data

    def write(self, path: Path) -> Path:
        path.write_bytes(self.build())
        return path
