"""Compile side of the tokenizer: GGUF metadata to ``tokenizer.json``, against llama.cpp's stored answers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend

from forgec.errors import UnsupportedModelError
from forgec.frontend.gguf import open_gguf
from forgec.frontend.pretokenizers import PRE_TOKENIZERS, find_pre_tokenizer
from forgec.frontend.tokenizer import TokenizerSpec, build_tokenizer, check_chat_template, describe_tokenizer
from runtime.chat import render
from runtime.tokenizer import Tokenizer
from tests.smollm2 import require_smollm2
from tests.vectors.small_vocabularies import (
    CONTROL,
    NORMAL,
    USER_DEFINED,
    gemma_vocabulary,
    pair_vocabulary,
    sentencepiece_vocabulary,
)

FIXTURES = Path(__file__).parent / "fixtures" / "tokenizer"


def load_fixture(name: str) -> dict[str, Any]:
    fixture: dict[str, Any] = json.loads((FIXTURES / name).read_text(encoding="ascii"))
    return fixture


PRE = load_fixture("pre_tokenizers.json")
SMALL = load_fixture("small_vocabularies.json")
SMOLLM2 = load_fixture("smollm2.json")


def runtime_tokenizer(spec: TokenizerSpec) -> Tokenizer:
    """The runtime's tokenizer, with the manifest section as it comes back from a file."""
    return Tokenizer(spec.json, json.loads(json.dumps(spec.to_manifest())))


def small_metadata(kind: str) -> dict[str, Any]:
    strings = SMALL["strings"]
    return {
        "pairs": lambda: pair_vocabulary(strings, "gpt-2"),
        "sentencepiece": lambda: sentencepiece_vocabulary(strings, space_prefix=True),
        "sentencepiece_plain": lambda: sentencepiece_vocabulary(strings, space_prefix=False),
        "phi3": lambda: sentencepiece_vocabulary(strings, space_prefix=True, name="Phi-3 like"),
        "gemma": lambda: gemma_vocabulary(strings),
    }[kind]()


@pytest.fixture(scope="module")
def smollm2() -> TokenizerSpec:
    with open_gguf(require_smollm2()) as file:
        return build_tokenizer(file.metadata)


# --- ids agree with llama.cpp -------------------------------------------------------------------------------


def test_every_byte_level_name_has_vectors() -> None:
    assert set(PRE["names"]) == {name for name, entry in PRE_TOKENIZERS.items() if not entry.raw_utf8}
    upstream = {name for name, entry in PRE_TOKENIZERS.items() if entry.upstream}
    for name, (group, _) in PRE["names"].items():
        compared = [cut for cut in PRE["cuts"][group] if cut is not None]
        assert len(compared) >= (25 if name in upstream else len(PRE["strings"])), name


@pytest.mark.parametrize("name", sorted(PRE["names"]))
def test_pre_tokenizer_cuts_as_llama_cpp_does(name: str) -> None:
    group, add_bos = PRE["names"][name]
    spec = build_tokenizer(pair_vocabulary(PRE["strings"], name))
    tokenizer = runtime_tokenizer(spec)
    assert spec.add_bos == add_bos
    for text, expected in zip(PRE["strings"], PRE["cuts"][group], strict=True):
        if expected is not None:
            ids = tokenizer.encode(text, add_bos=False)
            assert "".join(str(len(tokenizer.piece(token))) for token in ids) == expected, text


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("tekken", "ПриветМир éCole", ["Привет", "Мир", " é", "Cole"]),
        ("gpt-4o", "हिन्दी it's ÉCOLEa", ["हिन्दी", " it's", " ÉCOLEa"]),
        ("minimax-m2", "naïve1234", ["naïve", "123", "4"]),
        ("tiny_aya", "in 1234567 Wörtern", ["in", " ", "1", "234", "567", " Wörtern"]),
        ("kimi-k2", "中文fooBar漢字", ["中文", "foo", "Bar", "漢字"]),
        ("youtu", "한국어Test’s", ["한국어", "Test", "’", "s"]),
        ("deepseek-llm", "你好\u3000世界", ["你好", "\u3000", "世界"]),
        ("deepseek-coder", "a\u2009b 中", ["a", "\u2009", "b", " ", "中"]),
    ],
)
def test_upstream_expressions_where_llama_cpp_approximates(name: str, text: str, words: list[str]) -> None:
    assert find_pre_tokenizer(name).upstream
    backend = Backend.from_str(build_tokenizer(pair_vocabulary([text], name)).json)
    pieces = backend.pre_tokenizer.pre_tokenize_str(text)
    # Offsets are characters of the text; a character of several bytes stays in one piece.
    assert [text[start:end] for _, (start, end) in pieces] == words


@pytest.mark.parametrize("kind", ["pairs", "sentencepiece", "sentencepiece_plain", "phi3", "gemma"])
def test_small_vocabulary_gives_llama_cpp_ids(kind: str) -> None:
    answers = SMALL[kind]
    spec = build_tokenizer(small_metadata(kind))
    tokenizer = runtime_tokenizer(spec)
    strings = SMALL["phi3_strings"] if kind == "phi3" else SMALL["strings"]
    for special, key in ((False, "plain"), (True, "special")):
        found = [tokenizer.encode(text, special=special, add_bos=False) for text in strings]
        assert found == answers[key]
    assert list(spec.eog_ids) == answers["eog_ids"]
    assert list(spec.special_ids) == answers["control_ids"]
    assert (spec.bos_id, spec.eos_id, spec.add_bos) == (
        answers["bos_id"],
        answers["eos_id"],
        answers["add_bos"],
    )


def test_smollm2_gives_llama_cpp_ids(smollm2: TokenizerSpec) -> None:
    tokenizer = runtime_tokenizer(smollm2)
    for special, key in ((False, "plain"), (True, "special")):
        found = [tokenizer.encode(text, special=special, add_bos=False) for text in SMOLLM2["strings"]]
        assert found == SMOLLM2[key]


def test_smollm2_special_tokens(smollm2: TokenizerSpec) -> None:
    assert smollm2.vocab_size == 49152
    assert (smollm2.model, smollm2.pre, smollm2.byte_level) == ("gpt2", "smollm", True)
    assert (smollm2.bos_id, smollm2.eos_id, smollm2.bos_text, smollm2.eos_text) == (
        1,
        2,
        "<|im_start|>",
        "<|im_end|>",
    )
    assert (smollm2.add_bos, smollm2.add_eos, smollm2.add_space_prefix) == (False, False, False)
    assert list(smollm2.eog_ids) == SMOLLM2["eog_ids"]
    assert list(smollm2.special_ids) == SMOLLM2["control_ids"]
    assert smollm2.chat_template is not None and "<|im_start|>" in smollm2.chat_template
    assert smollm2.fim.repository == 4  # "<repo_name>" is 3, "<reponame>" is 4


# --- the document -------------------------------------------------------------------------------------------


def test_equal_metadata_gives_equal_json() -> None:
    first = build_tokenizer(small_metadata("sentencepiece"))
    assert build_tokenizer(dict(reversed(small_metadata("sentencepiece").items()))) == first


@pytest.mark.parametrize("kind", ["pairs", "sentencepiece", "phi3", "gemma"])
def test_a_description_is_all_but_the_document(kind: str) -> None:
    metadata = small_metadata(kind)
    assert describe_tokenizer(metadata) == dataclasses.replace(build_tokenizer(metadata), json="")
    for key in ("merges", "scores"):
        if f"tokenizer.ggml.{key}" in metadata:
            with pytest.raises(UnsupportedModelError, match=f"the array 'tokenizer.ggml.{key}' is missing"):
                describe_tokenizer(without(metadata, f"tokenizer.ggml.{key}"))


def test_numpy_arrays_and_lists_are_the_same() -> None:
    metadata = small_metadata("sentencepiece")
    arrays = metadata | {
        "tokenizer.ggml.token_type": np.array(metadata["tokenizer.ggml.token_type"], dtype=np.int32),
        "tokenizer.ggml.scores": np.array(metadata["tokenizer.ggml.scores"], dtype=np.float32),
        "tokenizer.ggml.bos_token_id": np.uint32(1),
    }
    assert build_tokenizer(arrays).json == build_tokenizer(metadata).json


def test_manifest_section_is_plain_json_with_ranges() -> None:
    section = build_tokenizer(small_metadata("sentencepiece")).to_manifest()
    assert json.loads(json.dumps(section)) == {**section, "fim": dict(section["fim"])}
    assert section["byte_ids"] == [[3, 258]]
    assert "json" not in section


def test_named_chat_templates_are_kept() -> None:
    metadata = small_metadata("pairs") | {
        "tokenizer.chat_template": "a",
        "tokenizer.chat_template.tool_use": "b",
        "tokenizer.chat_templates": ["tool_use"],
    }
    spec = build_tokenizer(metadata)
    assert (spec.chat_template, spec.chat_templates) == ("a", (("tool_use", "b"),))


# --- special tokens -----------------------------------------------------------------------------------------


def with_tokens(extra: dict[str, int], **keys: Any) -> tuple[TokenizerSpec, dict[str, int]]:
    """The pair vocabulary with further tokens (text to type) and ``tokenizer.ggml`` keys."""
    metadata = pair_vocabulary(["x y"], "gpt-2")
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], *extra]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], *extra.values()]
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    ids = {text: index for index, text in enumerate(metadata["tokenizer.ggml.tokens"])}
    return build_tokenizer(metadata), ids


def test_end_tokens_are_found_by_text_and_become_control() -> None:
    spec, ids = with_tokens({"<|eot_id|>": NORMAL, "<end_of_turn>": USER_DEFINED, "[e~[": NORMAL})
    found = {ids[text] for text in ("<|eot_id|>", "<end_of_turn>", "[e~[", "<|im_end|>", "<|endoftext|>")}
    assert set(spec.eog_ids) == found
    assert found <= set(spec.special_ids)


def test_named_end_tokens_are_end_tokens() -> None:
    spec, ids = with_tokens({"stop": NORMAL, "turn": NORMAL}, eot_token_id=10, eom_token_id=11)
    assert {10, 11} <= set(spec.eog_ids)
    assert spec.eot_id == 10
    assert ids["stop"] not in spec.eog_ids


def test_harmony_end_of_message_is_not_an_end() -> None:
    spec, ids = with_tokens(dict.fromkeys(("<|end|>", "<|return|>", "<|call|>", "<|channel|>"), CONTROL))
    assert ids["<|end|>"] not in spec.eog_ids
    assert {ids["<|return|>"], ids["<|call|>"]} <= set(spec.eog_ids)
    assert {ids["<|end|>"], ids["<|channel|>"]} <= set(spec.literal_ids)


def test_strikethrough_tag_of_gemma_4_is_ordinary_text() -> None:
    spec = build_tokenizer(small_metadata("gemma"))
    tokens = small_metadata("gemma")["tokenizer.ggml.tokens"]
    assert tokens.index("</s>") in spec.eog_ids  # no "<|tool_response>": it ends the generation
    metadata = small_metadata("gemma")
    metadata["tokenizer.ggml.tokens"] = [*tokens, "<|tool_response>"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], CONTROL]
    spec = build_tokenizer(metadata)
    assert tokens.index("</s>") not in (*spec.eog_ids, *spec.special_ids)
    assert len(tokens) in spec.eog_ids


def test_fill_in_the_middle_tokens_by_text_and_by_key() -> None:
    spec, ids = with_tokens(
        {"<fim_prefix>": CONTROL, "<fim_suffix>": CONTROL, "<fim_pad>": NORMAL}, fim_suf_token_id=7
    )
    assert (spec.fim.prefix, spec.fim.suffix, spec.fim.middle) == (ids["<fim_prefix>"], 7, None)
    assert ids["<fim_pad>"] in spec.eog_ids and ids["<fim_pad>"] in spec.special_ids


@pytest.mark.parametrize("value", [0xFFFFFFFF, -1, 5000])
def test_unusable_padding_id_is_none(value: int) -> None:
    spec, _ = with_tokens({}, padding_token_id=value)
    assert (spec.pad_id, spec.unk_id) == (None, None)


def test_minus_one_end_id_is_none() -> None:
    assert with_tokens({}, eos_token_id=0xFFFFFFFF)[0].eos_id is None


def test_tokens_that_must_not_be_sampled_are_refused() -> None:
    message = r"never to choose 2 tokens \('tokenizer.ggml.suppress_tokens'\), among them 5; forgec has"
    with pytest.raises(UnsupportedModelError, match=message):
        with_tokens({}, suppress_tokens=[5, 3, 10**6, -1])
    assert with_tokens({}, suppress_tokens=[10**6])[0].vocab_size > 0  # llama.cpp drops ids outside, too


# --- refusals -----------------------------------------------------------------------------------------------


def refusal(metadata: dict[str, Any]) -> UnsupportedModelError:
    with pytest.raises(UnsupportedModelError) as caught:
        build_tokenizer(metadata)
    return caught.value


def without(metadata: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in metadata.items() if name != key}


def test_unknown_pre_tokenizer_is_refused_with_the_known_ones() -> None:
    error = refusal(pair_vocabulary(["x"], "qwen9"))
    assert error.message.startswith(
        "the pre-tokenizer 'qwen9' (tokenizer.ggml.pre) is not supported; supported are a.x-4.0, bailingmoe, "
    )
    assert all(name in error.message for name in PRE_TOKENIZERS)
    assert "silently change the tokens" in error.hint


@pytest.mark.parametrize("model", ["bert", "t5", "rwkv", "plamo2"])
def test_unknown_tokenizer_model_is_refused_with_the_known_ones(model: str) -> None:
    error = refusal(pair_vocabulary(["x"], "gpt-2") | {"tokenizer.ggml.model": model})
    assert error.message == (
        f"the tokenizer model '{model}' (tokenizer.ggml.model) is not supported; "
        "supported are gemma4, gpt2, llama"
    )


@pytest.mark.parametrize(
    ("kind", "key", "message"),
    [
        ("pairs", "model", "the file has no tokenizer: 'tokenizer.ggml.model' is missing"),
        (
            "pairs",
            "pre",
            "'tokenizer.ggml.pre' is missing, so it is unknown how this vocabulary cuts text into words",
        ),
        ("pairs", "tokens", "the array 'tokenizer.ggml.tokens' is missing"),
        ("pairs", "merges", "the array 'tokenizer.ggml.merges' is missing"),
        ("sentencepiece", "scores", "the array 'tokenizer.ggml.scores' is missing"),
    ],
)
def test_missing_keys_are_named(kind: str, key: str, message: str) -> None:
    error = refusal(without(small_metadata(kind), f"tokenizer.ggml.{key}"))
    assert error.message == message
    assert error.hint


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokens", [], "'tokenizer.ggml.tokens' is empty"),
        ("tokens", ["a", "b", "a"], "'tokenizer.ggml.tokens' holds 'a' twice"),
        ("tokens", ["a", 1], "'tokenizer.ggml.tokens' holds 1, expected strings"),
        ("tokens", "abc", "'tokenizer.ggml.tokens' is 'abc', expected an array"),
        ("token_type", [1, 1], "'tokenizer.ggml.token_type' has 2 entries for 265 tokens"),
        ("merges", ["xy"], "'tokenizer.ggml.merges' holds 'xy', which does not join two tokens into a third"),
        (
            "merges",
            ["x x"],
            "'tokenizer.ggml.merges' holds 'x x', which does not join two tokens into a third",
        ),
        ("eos_token_id", 265, "'tokenizer.ggml.eos_token_id' is 265, but the vocabulary has 265 tokens"),
        ("eos_token_id", "2", "'tokenizer.ggml.eos_token_id' is '2', expected a token id"),
        ("add_bos_token", 7, "'tokenizer.ggml.add_bos_token' is 7, expected true or false"),
        ("pre", 3, "'tokenizer.ggml.pre' is 3, expected a string"),
    ],
)
def test_odd_values_are_refused(key: str, value: Any, message: str) -> None:
    metadata = pair_vocabulary(["xyz "], "gpt-2")
    assert len(metadata["tokenizer.ggml.tokens"]) == 265
    assert refusal(metadata | {f"tokenizer.ggml.{key}": value}).message == message


#: One of everything that a GGUF file can hold under a key; lists as long as the vocabulary below.
VALUES: tuple[Any, ...] = (
    *(True, 0, -1, 1 << 40, 1.5, float("nan"), "", "x", np.empty(0, np.int32), np.array([3], np.int32)),
    *([item] * 265 for item in ("a", 1.5, float("inf"), [1], ("a",))),
    *(np.arange(265), np.arange(265) + 10**12, np.ones(265), np.ones(265, bool), list(map(str, range(265)))),
    (np.arange(3), np.arange(2)),
)
KEYS = (
    *("model", "pre", "tokens", "token_type", "scores", "merges", "suppress_tokens"),
    *("bos_token_id", "eos_token_id", "eot_token_id", "unknown_token_id", "padding_token_id"),
    *("fim_pre_token_id", "prefix_token_id", "add_bos_token", "add_eos_token", "add_space_prefix"),
)


@pytest.mark.parametrize("key", KEYS)
def test_any_value_under_a_key_is_read_or_refused(key: str) -> None:
    tiny = pair_vocabulary(["xyz "], "gpt-2")
    for metadata in (tiny, tiny | {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [0.0] * 265}):
        for value in VALUES:
            try:
                build_tokenizer(metadata | {f"tokenizer.ggml.{key}": value})
            except UnsupportedModelError as error:
                assert len(error.message) < 2000 and "\n" not in error.message


def test_begin_token_must_exist_where_it_is_added() -> None:
    metadata = without(pair_vocabulary(["x"], "llama-bpe"), "tokenizer.ggml.bos_token_id")
    assert "'tokenizer.ggml.bos_token_id' names none" in refusal(metadata).message
    assert build_tokenizer(metadata | {"tokenizer.ggml.add_bos_token": False}).bos_id is None


def test_sentencepiece_without_bytes_or_with_bad_scores_is_refused() -> None:
    metadata = small_metadata("sentencepiece")
    tokens = list(metadata["tokenizer.ggml.tokens"])
    tokens[tokens.index("<0x41>")] = "other"
    message = refusal(metadata | {"tokenizer.ggml.tokens": tokens}).message
    assert message == "the vocabulary has no byte token '<0x41>', so characters outside it cannot be written"
    scores = [float("nan"), *metadata["tokenizer.ggml.scores"][1:]]
    assert "holds nan, expected numbers" in refusal(metadata | {"tokenizer.ggml.scores": scores}).message


def test_piece_of_a_character_that_is_no_token_is_refused() -> None:
    metadata = small_metadata("sentencepiece")
    tokens = list(metadata["tokenizer.ggml.tokens"])
    tokens[tokens.index("unused")] = "x𝕏"
    types = [
        NORMAL if token == "x𝕏" else kind
        for token, kind in zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True)
    ]
    error = refusal(metadata | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types})
    assert error.message == "the token 'x𝕏' is made of a character that is not itself a token"


# --- trial rendering ----------------------------------------------------------------------------------------


def test_chat_template_check_returns_the_prompt(smollm2: TokenizerSpec) -> None:
    prompt = check_chat_template(smollm2, render)
    assert prompt == SMOLLM2["prompts"][0]


def test_chat_template_check_explains_what_is_wrong() -> None:
    metadata = small_metadata("pairs")
    with pytest.raises(UnsupportedModelError, match=r"'tokenizer\.chat_template' is missing"):
        check_chat_template(build_tokenizer(metadata), render)
    broken = build_tokenizer(metadata | {"tokenizer.chat_template": "{{ messages[0]."})
    with pytest.raises(UnsupportedModelError, match=r"the chat template does not render: .* in line 1"):
        check_chat_template(broken, render)
