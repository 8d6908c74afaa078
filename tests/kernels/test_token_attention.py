"""The attention step of the persistent kernel on matrix units, against float64.

The kernel of a whole token runs with a table of two attention steps and an exchange that already holds q,
k and v. On an emulated gfx1100 the matrix product is written out (``test_attention_matrix``) and races in LDS
are traps; on a GPU the wave that copies takes part.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest

from forgec.codegen import render
from forgec.plan.persistent import BLOCK, persist
from forgec.plan.stages.token import ATTENTION, TokenAttention, TokenParams
from forgec.plan.token_attention import matrix_attention
from forgec.targets import get_target
from tests.kernels.harness import DEVICES as TARGETS
from tests.kernels.harness import EPS32, State, run_stage
from tests.kernels.test_attention_matrix import DEVICES, PRODUCT
from tests.token_examples import token_launches

on_devices = pytest.mark.parametrize("device", DEVICES)
#: Steps done before, and the number of the step that made q, k and v.
EPOCH, SOURCE = 65500, 77
#: What the matrix form needs besides the product, for a family without it.
VOCABULARY = """
DEVICE void wave_converge() { __builtin_amdgcn_wave_barrier(); asm volatile("" ::: "memory"); }
DEVICE void bring_to_cache(const void*, u32) {}
"""


@dataclass(frozen=True)
class Alone(TokenParams):
    """The kernel without its last line: these steps do not make the first block wait until all have begun."""

    @property
    def template_text(self) -> str:
        path = render.templates_dir() / "stages" / f"{self.stage}.hip.j2"
        last = "  if (block == 0 && thread() == 0) sync_words[0] += (u32)kSteps;\n"
        text = path.read_text(encoding="utf-8")
        assert last in text
        return text.replace(last, "")


@dataclass(frozen=True)
class WrittenOut(Alone):
    """The same for a family without the product."""

    @property
    def template_text(self) -> str:
        first = '{% include "lib/formats/common.hip.j2" %}'
        return super().template_text.replace(first, PRODUCT + VOCABULARY + first, 1)


def rounded(values: np.ndarray) -> np.ndarray:
    """f32 with 24 bits, as the exchange carries them."""
    words = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((words + 0x80) & 0xFFFFFF00).view(np.float32)


def packed(values: np.ndarray, tag: int) -> np.ndarray:
    """Words of the exchange of pairs of floats [..., 2n]."""
    words = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64) >> np.uint64(8)
    return words[..., 0::2] << np.uint64(16) | words[..., 1::2] << np.uint64(40) | np.uint64(tag & 0xFFFF)


def unpacked(words: np.ndarray, tag: int) -> np.ndarray:
    assert (words & np.uint64(0xFFFF) == tag & 0xFFFF).all(), "a word was not sent"
    bits = np.stack([words >> np.uint64(8), words >> np.uint64(32)], -1) & np.uint64(0xFFFFFF00)
    return bits.astype(np.uint32).view(np.float32).reshape(*words.shape[:-1], -1).astype(np.float64)


def rotate(x: np.ndarray, angles: np.ndarray, interleaved: bool) -> np.ndarray:
    """The leading features of float64 [heads, length] by angles [pairs, 2] (cosine, sine)."""
    pairs = len(angles)
    low = np.arange(pairs) * 2 if interleaved else np.arange(pairs)
    high = low + 1 if interleaved else low + pairs
    cosine, sine = angles.astype(np.float64).T
    out = x.copy()
    out[:, low] = cosine * x[:, low] - sine * x[:, high]
    out[:, high] = sine * x[:, low] + cosine * x[:, high]
    return out


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    length: int
    rope_dims: int
    interleaved: bool
    context: int = 512

    def attention(self, **changes: Any) -> TokenAttention:
        values = (self.heads, self.kv_heads, self.length, self.rope_dims, self.interleaved, self.context)
        return replace(
            matrix_attention((*values, "f16", self.length**-0.5), get_target("sm_90"), BLOCK), **changes
        )


def params_of(attention: TokenAttention, device: str) -> TokenParams:
    """A kernel of two steps; the exchange holds q, k, v, then for each step its output and its parts."""
    target = get_target(TARGETS[device])
    base = persist(token_launches(target, "q8"), {}, target, "fast", 1 << 20).launch.kernel
    assert isinstance(base, TokenParams)
    work = attention.lds_bytes(base.block // base.wave)
    params = replace(
        base,
        steps=2,
        linears=(),
        slots=min(base.slots, 2),
        attention=attention,
        work_bytes=-(-max(base.work_bytes, work) // 128) * 128,
        angles=attention.rope_dims,
        rope_table=0,
        exchange_words=-(-places(attention)[-1] // 512) * 512,
    )
    kind = Alone if device == "cuda" else WrittenOut
    return kind(**{f.name: getattr(params, f.name) for f in fields(params)})


def places(attention: TokenAttention) -> list[int]:
    """Word offsets: q, k and v; two outputs; two regions of parts; the end."""
    half = attention.head_length // 2
    sizes = [(attention.heads + 2 * attention.kv_heads) * half, *[attention.heads * half] * 2]
    sizes += [attention.heads * attention.most_parts * (half + 1)] * 2
    return [0, *np.cumsum([-(-size // 16) * 16 for size in sizes]).tolist()]


def check(
    rng: np.random.Generator,
    shape: Shape,
    device: str,
    position: int,
    blocks: int,
    size: float = 1.0,
    **changes: Any,
) -> None:
    attention = shape.attention(**changes)
    params = params_of(attention, device)
    heads, kv_heads, length = shape.heads, shape.kv_heads, shape.length
    at = places(attention)
    rows = rounded(rng.standard_normal((heads + 2 * kv_heads, length)))
    rows[:heads] = rounded(rows[:heads] * np.float32(size))
    turns = rng.uniform(0, 2 * np.pi, shape.rope_dims // 2)
    angles = np.stack([np.cos(turns), np.sin(turns)], -1).astype(np.float32)
    table = np.full((shape.context, shape.rope_dims // 2, 2), np.nan, np.float32)
    table[position] = angles
    caches = np.full((2, 2, kv_heads, shape.context, length), np.nan, np.float16)  # step, K or V
    caches[:, :, :, :position] = rng.standard_normal((2, 2, kv_heads, position, length))
    exchange = np.zeros((params.replicas, params.exchange_words), np.uint64)
    exchange[:, : rows.size // 2] = packed(rows, EPOCH + 1 + SOURCE).ravel()
    units = caches[0, 0].nbytes // 16
    steps = b"".join(
        struct.pack(
            "<16I",
            ATTENTION,
            at[0],
            SOURCE,
            at[1 + n],
            at[3 + n],
            *[0] * 7,
            2 * n * units,
            (2 * n + 1) * units,
            0,
            0,
        )
        for n in range(2)
    )
    arrays = {
        "weights": table.view(np.uint8).ravel(),
        "kv": caches,
        "exchange": exchange,
        "sync_words": np.array([EPOCH], np.uint32),
        "table": np.frombuffer(steps, np.uint8).copy(),
        "logits": np.zeros(4, np.float32),
        "ring": np.zeros(4, np.int32),
    }
    after = run_stage(params, arrays, state=State(position=position), device=device, blocks=(blocks,))
    q = rotate(rows[:heads].astype(np.float64), angles, shape.interleaved)
    new = [
        rotate(rows[heads : heads + kv_heads].astype(np.float64), angles, shape.interleaved),
        rows[heads + kv_heads :],
    ]
    for n in range(2):
        k, v = after["kv"][n]
        for held, exact, before in zip((k, v), new, caches[n], strict=True):
            assert (
                np.abs(held[:, position].astype(np.float64) - exact).max() <= np.abs(exact).max() * 2.0**-10
            )
            held_before = np.delete(held, position, 1).view(np.uint16)
            assert np.array_equal(held_before, np.delete(before, position, 1).view(np.uint16))
        expected, bound = attended(q, k[:, : position + 1], v[:, : position + 1], shape)
        for copy in after["exchange"]:
            out = unpacked(
                copy[at[1 + n] : at[1 + n] + heads * length // 2].reshape(heads, -1), EPOCH + 1 + n
            )
            # Parts and the result pass the exchange with 16 bits of a mantissa each.
            error = np.abs(out - expected) / (
                bound * (2.0**-15 + EPS32 * (8 + 2 * np.sqrt(position + 1 + length)))
            )
            assert error.max() <= 1, f"step {n}: {error.max():.2f} times the bound"


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """softmax(q·k) v in float64 [heads, length], and what its error is relative to."""
    k, v = (np.repeat(x.astype(np.float64), shape.heads // shape.kv_heads, axis=0) for x in (k, v))
    scores = np.einsum("hd,hcd->hc", q, k) * shape.length**-0.5
    sizes = np.einsum("hd,hcd->hc", np.abs(q), np.abs(k)) * shape.length**-0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out, sums = np.einsum("hc,hcd->hd", weights, v), np.einsum("hc,hcd->hd", weights, np.abs(v))
    return out, sums * (1 + 2 * EPS32 / 2.0**-15 * sizes.max(-1)[:, None])


#: Heads of SmolLM2; of Qwen2, whose seven go in two tiles and do not interleave; eight, partly rotated.
SMOL = Shape(9, 3, 64, 64, True)
QWEN = Shape(14, 2, 128, 128, False)
EIGHT = Shape(8, 1, 64, 32, False)
#: Parts of few keys, so that small caches have many.
SMALL = {"alone": 32, "least": 16}


@on_devices
@pytest.mark.parametrize(("position", "blocks"), [(0, 7), (16, 2), (70, 5), (300, 1)])
def test_one_part(rng: np.random.Generator, device: str, position: int, blocks: int) -> None:
    """Fewer blocks than KV heads too, and more keys than the waves take at a time."""
    check(rng, SMOL, device, position, blocks)


@on_devices
@pytest.mark.parametrize(
    ("shape", "blocks"), [(SMOL, 9), (SMOL, 40), (QWEN, 9), (QWEN, 25), (EIGHT, 30), (EIGHT, 45)]
)
def test_parts(rng: np.random.Generator, device: str, shape: Shape, blocks: int) -> None:
    """Two to forty-four parts; blocks without a part are among them."""
    check(rng, shape, device, int(rng.integers(200, 500)), blocks, **SMALL)


@on_devices
@pytest.mark.parametrize("position", [31, 32, 33, 47, 48])
def test_where_parts_begin(rng: np.random.Generator, device: str, position: int) -> None:
    check(rng, EIGHT, device, position, 45, **SMALL)


@on_devices
def test_two_tiles_of_a_group_in_one_part(rng: np.random.Generator, device: str) -> None:
    check(rng, QWEN, device, int(rng.integers(1, 32)), 3, **SMALL)


@on_devices
def test_large_scores(rng: np.random.Generator, device: str) -> None:
    check(rng, EIGHT, device, 400, 20, size=300.0, **SMALL)
