"""Compares forgec's tokenizers with llama.cpp's, over a folder of GGUF files.

    pip install llama-cpp-python
    pip download --no-deps --no-binary llama-cpp-python llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
    python tests/vectors/check_vocabularies.py llama_cpp_python-*/vendor/llama.cpp/models --strings 600

Per file: the expected ids of ``<file>.inp``/``.out`` if they lie next to it, then random strings encoded both
as plain text and with control tokens parsed, then the bytes of every token and the special ids. It prints one
table row per file and exits with 1 if anything differs that should not. Known differences: pre-tokenizers
marked ``upstream`` in forgec/frontend/pretokenizers.py may differ on random strings, and llama.cpp shows a
normal token outside GPT-2's byte alphabet as "[UNK_BYTE_...]". It downloads nothing and writes nothing.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from forgec.errors import ForgeError
from forgec.frontend.gguf import open_gguf
from forgec.frontend.pretokenizers import PRE_TOKENIZERS
from forgec.frontend.tokenizer import TokenizerSpec, build_tokenizer
from runtime.tokenizer import Tokenizer
from tests.vectors.oracle import Oracle
from tests.vectors.strings import FIXED_STRINGS, random_strings

_SEPARATOR = "\n__ggml_vocab_test__\n"


@dataclass
class Row:
    """Differences found in one file: (different, compared) per kind."""

    vectors: tuple[int, int] = (0, 0)
    plain: tuple[int, int] = (0, 0)
    special: tuple[int, int] = (0, 0)
    pieces: tuple[int, int] = (0, 0)
    ids: str = ""
    upstream: bool = False

    @property
    def clean(self) -> bool:
        if self.vectors[0] or self.pieces[0] or self.ids:
            return False
        return self.upstream or not (self.plain[0] or self.special[0])


def _expected_vectors(path: Path) -> list[tuple[str, list[int]]]:
    texts, ids = path.with_name(path.name + ".inp"), path.with_name(path.name + ".out")
    if not texts.exists() or not ids.exists():
        return []
    inputs = texts.read_bytes().decode().split(_SEPARATOR)
    outputs = ids.read_text().splitlines()
    return [
        (text, [int(token) for token in line.split()]) for text, line in zip(inputs, outputs, strict=False)
    ]


def _report(verbose: bool, kind: str, text: str, expected: list[int], found: list[int]) -> int:
    if expected == found:
        return 0
    if verbose:
        print(f"  {kind}: {text!a}\n    expected {expected}\n    found    {found}")
    return 1


def _special_differences(spec: TokenizerSpec, oracle: Oracle) -> str:
    pairs = {
        "eog": (set(spec.eog_ids), oracle.eog_ids()),
        "special": (set(spec.special_ids), oracle.control_ids()),
        "bos": (spec.bos_id, oracle.bos_id),
        "eos": (spec.eos_id, oracle.eos_id),
        "add_bos": (spec.add_bos, oracle.add_bos),
    }
    return " ".join(
        f"{name}: {mine} not {theirs}" for name, (mine, theirs) in pairs.items() if mine != theirs
    )


def check(path: Path, strings: int, seed: int, verbose: bool) -> Row:
    """Compare one file. Raises ForgeError if forgec does not support its tokenizer."""
    with open_gguf(path) as file:
        spec = build_tokenizer(file.metadata)
    tokenizer = Tokenizer(spec.json, spec.to_manifest())
    oracle = Oracle(path)
    row = Row(upstream=spec.pre in PRE_TOKENIZERS and PRE_TOKENIZERS[spec.pre].upstream)
    vectors = _expected_vectors(path)
    wrong = sum(_report(verbose, "vector", t, ids, tokenizer.encode(t, add_bos=False)) for t, ids in vectors)
    row.vectors = (wrong, len(vectors))

    rng = random.Random(seed)
    names = [tokenizer.token_text(token) for token in (*spec.special_ids[:40], *spec.literal_ids[:40])]
    names += [tokenizer.token_text(rng.randrange(spec.vocab_size)) for _ in range(40)]
    texts = [*FIXED_STRINGS, *random_strings(strings, seed, names)]
    counts = {False: 0, True: 0}
    for text in texts:
        for special in (False, True):
            found = tokenizer.encode(text, special=special, add_bos=False)
            counts[special] += _report(
                verbose, f"special={special}", text, oracle.encode(text, special), found
            )
    row.plain, row.special = (counts[False], len(texts)), (counts[True], len(texts))

    tokens = range(spec.vocab_size) if spec.vocab_size <= 300_000 else range(0, spec.vocab_size, 7)
    wrong = 0
    for token in tokens:
        expected, found = oracle.piece(token), tokenizer.piece(token)
        if expected != found and not expected.startswith(b"[UNK_BYTE_0x"):
            wrong += 1
            if verbose and wrong < 10:
                print(f"  piece {token}: expected {expected!r} found {found!r}")
    row.pieces = (wrong, len(tokens))
    row.ids = _special_differences(spec, oracle)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a folder of GGUF files, or one file")
    parser.add_argument("--strings", type=int, default=600, help="random strings per vocabulary")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verbose", action="store_true", help="print every difference")
    options = parser.parse_args()
    paths = sorted(options.folder.glob("*.gguf")) if options.folder.is_dir() else [options.folder]
    if not paths:
        parser.error(f"no GGUF files in '{options.folder}'")
    print(f"{'file':34} {'vectors':>9} {'plain':>10} {'special':>10} {'pieces':>14}  ids")
    failed = compared = 0
    for path in paths:
        name = path.name.removeprefix("ggml-vocab-").removesuffix(".gguf")
        started = time.monotonic()
        try:
            row = check(path, options.strings, options.seed, options.verbose)
        except ForgeError as error:
            print(f"{name:34} refused: {error.message[:120]}")
            continue
        compared += 1
        failed += not row.clean
        cells = [f"{wrong}/{total}" for wrong, total in (row.vectors, row.plain, row.special, row.pieces)]
        print(
            f"{name:34} {cells[0]:>9} {cells[1]:>10} {cells[2]:>10} {cells[3]:>14}  "
            f"{row.ids or 'equal'}{' upstream' if row.upstream else ''}  ({time.monotonic() - started:.1f} s)"
        )
    print(f"{compared} vocabularies compared, {failed} differ (different/compared)")
    return 1 if failed or not compared else 0


if __name__ == "__main__":
    sys.exit(main())
