"""llama.cpp as an oracle: token ids in, full logits and timings out, through the C API in xllamacpp's wheel.

The wheel's Python surface is a server that reports a few probabilities of generated tokens; an oracle needs
every logit of given tokens. The same shared object exports llama.h, so ctypes calls that. Parameter structs
are passed as opaque blocks; their layout is checked against the defaults before anything is changed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from forgec.errors import ForgeError, UsageError

__all__ = ["LlamaCpp", "ggml_quantise", "oracle_version"]

WORDS = 128  # of the opaque parameter block: larger than either struct, which is harmless by value
# llama_context_params by 32-bit word, as in llama.h of the versions that pass the check below.
N_CTX, N_BATCH, N_UBATCH, FLASH_ATTN, TYPE_K, TYPE_V = 0, 1, 2, 13, 26, 27
NEGATIVE = 0xFFFFFFFF
DEFAULTS = {10: NEGATIVE, 11: NEGATIVE, 12: NEGATIVE, FLASH_ATTN: NEGATIVE, TYPE_K: 1, TYPE_V: 1}
KV_TYPES = {"f32": 0, "f16": 1}

LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class _Params(ctypes.Structure):
    _fields_ = [("words", ctypes.c_uint32 * WORDS)]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.c_void_p),
        ("n_seq_id", ctypes.c_void_p),
        ("seq_id", ctypes.c_void_p),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


def oracle_version() -> str:
    """ "xllamacpp 2026.10.1" or an error that says how to install it."""
    if find_spec("xllamacpp") is None:
        raise UsageError("llama.cpp is not installed", "Install it with: pip install 'forgec[golden]'")
    return f"xllamacpp {version('xllamacpp')}"


def _library() -> ctypes.CDLL:
    """The shared object of the wheel with the signatures this module uses."""
    oracle_version()
    spec = find_spec("xllamacpp")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else Path()
    objects = sorted(folder.glob("xllamacpp*.so"))
    if not objects:
        raise ForgeError(f"xllamacpp in '{folder}' has no shared object", "Install xllamacpp again.")
    library = ctypes.CDLL(str(objects[0]))
    for name in ("llama_model_default_params", "llama_context_default_params"):
        getattr(library, name).restype = _Params
    library.llama_model_load_from_file.restype = ctypes.c_void_p
    library.llama_model_load_from_file.argtypes = [ctypes.c_char_p, _Params]
    library.llama_init_from_model.restype = ctypes.c_void_p
    library.llama_init_from_model.argtypes = [ctypes.c_void_p, _Params]
    library.llama_get_logits_ith.restype = ctypes.POINTER(ctypes.c_float)
    library.llama_get_logits_ith.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    library.llama_decode.argtypes = [ctypes.c_void_p, _Batch]
    library.llama_set_n_threads.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32]
    for name, result in (("llama_get_memory", ctypes.c_void_p), ("llama_model_get_vocab", ctypes.c_void_p)):
        getattr(library, name).restype = result
        getattr(library, name).argtypes = [ctypes.c_void_p]
    library.llama_vocab_n_tokens.argtypes = [ctypes.c_void_p]
    library.llama_memory_clear.argtypes = [ctypes.c_void_p, ctypes.c_bool]
    library.llama_adapter_lora_init.restype = ctypes.c_void_p
    library.llama_adapter_lora_init.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.llama_set_adapters_lora.argtypes = [
        ctypes.c_void_p,
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.c_size_t,
        ctypes.POINTER(ctypes.c_float),
    ]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    library.llama_free.argtypes = library.llama_model_free.argtypes = [ctypes.c_void_p]
    return library


def ggml_quantise(
    array: npt.NDArray[np.float32], ggml_id: int, row_bytes: int, *, importance: bool = False
) -> npt.NDArray[np.uint8]:
    """ggml's own quantisation of f32 [rows, cols]: uint8 [rows, row_bytes].

    ``importance`` gives it an importance matrix of ones, without which the smallest IQ types are refused.
    """
    rows, cols = array.shape
    values = np.ascontiguousarray(array, np.float32)
    data = np.zeros((rows, row_bytes), np.uint8)
    ones = np.ones(cols, np.float32)
    size = _library().ggml_quantize_chunk(
        ggml_id, values.ctypes.data, data.ctypes.data, 0, rows, cols, ones.ctypes.data if importance else None
    )
    if size != data.size:
        raise ForgeError(f"ggml wrote {size} bytes of type {ggml_id}, expected {data.size}")
    return data


def _ignore(level: int, text: bytes, user: int) -> None:
    """llama.cpp's log goes nowhere."""


_SILENCE = LOG_CALLBACK(_ignore)


class LlamaCpp:
    """One model in llama.cpp on the CPU, one sequence.

    ``kv`` is the cache's type; ``flash`` lets llama.cpp use its flash attention, which rounds queries to
    f16: off for an oracle, on ("auto" there) for speed comparisons. Raises ForgeError when it cannot load.
    """

    def __init__(
        self, path: Path, *, context: int, threads: int = 2, kv: str = "f16", flash: bool = False
    ) -> None:
        self._lib = _library()
        self._lib.llama_log_set(_SILENCE, None)
        self._context = None
        model_params = self._lib.llama_model_default_params()
        self._model = self._lib.llama_model_load_from_file(str(path).encode(), model_params)
        if not self._model:
            raise ForgeError(f"llama.cpp cannot load '{path}'")
        params = self._lib.llama_context_default_params()
        found = {word: params.words[word] for word in DEFAULTS}
        if found != DEFAULTS:
            raise ForgeError(
                f"{oracle_version()} lays its parameters out in another way ({found})",
                "Install the version named in pyproject.toml.",
            )
        params.words[N_CTX] = params.words[N_BATCH] = context
        params.words[N_UBATCH] = min(512, context)
        params.words[TYPE_K] = params.words[TYPE_V] = KV_TYPES[kv]
        params.words[FLASH_ATTN] = NEGATIVE if flash else 0
        self._context = self._lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise ForgeError(f"llama.cpp cannot make a context of {context} tokens for '{path}'")
        self._lib.llama_set_n_threads(self._context, threads, threads)
        self.vocab_size: int = self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(self._model))

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the context and the model."""
        if self._context:
            self._lib.llama_free(self._context)
        if self._model:
            self._lib.llama_model_free(self._model)
        self._context = self._model = None

    def set_adapters(self, adapters: Sequence[tuple[Path, float]]) -> None:
        """Apply LoRA adapters, each with its scale, from the next ``decode`` on; the model frees them."""
        handles = []
        for path, _ in adapters:
            handle = self._lib.llama_adapter_lora_init(self._model, str(path).encode())
            if not handle:
                raise ForgeError(f"llama.cpp cannot load the adapter '{path}'")
            handles.append(handle)
        count = len(handles)
        scales = (ctypes.c_float * count)(*(scale for _, scale in adapters))
        self._lib.llama_set_adapters_lora(self._context, (ctypes.c_void_p * count)(*handles), count, scales)

    def reset(self) -> None:
        """Forget everything decoded so far."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def decode(self, tokens: Sequence[int], *, every: bool = False) -> npt.NDArray[np.float32]:
        """Append tokens; logits f32 [1, vocab] of the last, or [len(tokens), vocab] of all with ``every``."""
        count = len(tokens)
        ids = (ctypes.c_int32 * count)(*tokens)
        wanted = (ctypes.c_int8 * count)(*([1] * count if every else [0] * (count - 1) + [1]))
        code = self._lib.llama_decode(self._context, _Batch(count, ids, None, None, None, None, wanted))
        if code != 0:
            raise ForgeError(f"llama.cpp cannot decode {count} tokens: error {code}")
        rows = range(count) if every else [count - 1]
        return np.stack([self._row(i) for i in rows])

    def _row(self, index: int) -> npt.NDArray[np.float32]:
        pointer = self._lib.llama_get_logits_ith(self._context, index)
        if not pointer:
            raise ForgeError(f"llama.cpp has no logits for token {index}")
        return np.ctypeslib.as_array(pointer, (self.vocab_size,)).copy()

    def greedy(self, prompt: Sequence[int], count: int) -> tuple[list[int], npt.NDArray[np.float32]]:
        """``count`` greedy tokens after ``prompt``, and the logits f32 [count, vocab] behind them."""
        self.reset()
        logits = [self.decode(prompt)[0]]
        tokens = [int(logits[0].argmax())]
        while len(tokens) < count:
            logits.append(self.decode(tokens[-1:])[0])
            tokens.append(int(logits[-1].argmax()))
        return tokens, np.stack(logits)
