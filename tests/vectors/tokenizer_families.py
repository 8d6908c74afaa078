"""The tokenizers of the supported model families: which GGUF fields their published files carry.

A row per family: the kind of vocabulary, its ``tokenizer.ggml.pre``, the texts and types of its special
tokens and the ids and flags that its converter writes. ``family_metadata`` joins that with a small
vocabulary of our own, so that a family's rules can be compared with llama.cpp's without anybody's tokens.
Source: the models' published ``tokenizer_config.json`` and llama.cpp's ``conversion``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.vectors.small_vocabularies import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    byte_alphabet,
    byte_pairs,
    trained_pieces,
)

__all__ = ["FAMILIES", "TokenizerFamily", "family_metadata", "family_strings"]


@dataclass(frozen=True)
class TokenizerFamily:
    """``control``, ``literal``, ``normal``: texts of tokens of that type, as the files have them.

    ``bos``, ``eos``, ``eot``: texts whose ids the file names; ``flags``: further ``tokenizer.ggml.*`` keys.
    ``pre`` is "" for SentencePiece. ``architectures``: GGUF names of the models that come with it.
    """

    pre: str
    architectures: tuple[str, ...]
    control: tuple[str, ...]
    bos: str | None = None
    eos: str | None = None
    eot: str | None = None
    literal: tuple[str, ...] = ()
    normal: tuple[str, ...] = ()
    flags: tuple[tuple[str, Any], ...] = ()


_FIM = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>")
_CODE_FIM = ("<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>")
_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
_DEEPSEEK_FIM = ("<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>")
_SPM = ("<s>", "</s>")
_GLM = (
    "<|endoftext|>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
)
_GEMMA = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
_HARMONY = ("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>",
            "<|end|>", "<|message|>", "<|call|>", "<|endofprompt|>")  # fmt: skip
_COHERE = ("<PAD>", "<UNK>", "<CLS>", "<SEP>", "<MASK_TOKEN>", "<BOS_TOKEN>", "<EOS_TOKEN>", "<EOP_TOKEN>",
           "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>",
           "<|CHATBOT_TOKEN|>")  # fmt: skip
_NO_BOS = (("add_bos_token", False),)
_BOS = (("add_bos_token", True),)

FAMILIES: dict[str, TokenizerFamily] = {
    "llama-spm": TokenizerFamily(
        "", ("llama", "mixtral", "granite", "nemotron", "minicpm"), _SPM, *_SPM, flags=_BOS
    ),
    "code-llama": TokenizerFamily(
        "", ("llama",), _SPM, *_SPM, normal=("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"), flags=_BOS
    ),
    "phi3": TokenizerFamily(
        "",
        ("phi3", "phimoe"),
        (*_SPM, "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
        "<s>",
        "<|endoftext|>",
        flags=(*_BOS, ("add_space_prefix", False)),
    ),
    "gemma": TokenizerFamily(
        "",
        ("gemma", "gemma2", "gemma3"),
        _GEMMA,
        "<bos>",
        "<eos>",
        "<end_of_turn>",
        literal=("\n\n", "<unused0>", "<h1>"),
        flags=(*_BOS, ("add_space_prefix", False)),
    ),
    "codegemma": TokenizerFamily(
        "",
        ("gemma",),
        (*_GEMMA, "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|file_separator|>"),
        "<bos>",
        "<eos>",
        flags=(*_BOS, ("add_space_prefix", False)),
    ),
    "internlm2": TokenizerFamily(
        "",
        ("internlm2",),
        (*_SPM, "<|im_start|>", "<|im_end|>", "<|action_start|>", "<|plugin|>"),
        "<s>",
        "<|im_end|>",
        flags=(*_BOS, ("add_space_prefix", False)),
    ),
    "llama-bpe": TokenizerFamily(
        "llama-bpe",
        ("llama", "smollm3", "arcee"),
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eom_id|>",
            "<|eot_id|>",
        ),
        "<|begin_of_text|>",
        "<|eot_id|>",
    ),
    "tekken": TokenizerFamily(
        "tekken",
        ("llama", "mistral3"),
        ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]"),
        "<s>",
        "</s>",
        flags=_BOS,
    ),
    "smollm": TokenizerFamily(
        "smollm",
        ("llama",),
        (*_CHATML, "<repo_name>", "<reponame>", "<file_sep>"),
        *_CHATML[1:],
        flags=_NO_BOS,
    ),
    "qwen2": TokenizerFamily(
        "qwen2",
        ("qwen2", "qwen2moe", "qwen3", "qwen3moe"),
        (*_CHATML, *_FIM, "<|repo_name|>", "<|file_sep|>"),
        "<|endoftext|>",
        "<|im_end|>",
        literal=("<think>", "</think>", "<tool_call>"),
        flags=_NO_BOS,
    ),
    "phi2": TokenizerFamily(
        "gpt-2",
        ("phi2", "gpt2"),
        ("<|endoftext|>",),
        "<|endoftext|>",
        "<|endoftext|>",
        literal=("    ", "\t\t"),
    ),
    "phi4": TokenizerFamily(
        "dbrx",
        ("phi3",),
        (*_CHATML, *_FIM[:3], "<|im_sep|>", "<|endofprompt|>"),
        "<|endoftext|>",
        "<|im_end|>",
    ),
    "chatglm": TokenizerFamily(
        "chatglm-bpe", ("chatglm",), (*_GLM, "<|observation|>"), None, "<|endoftext|>", "<|user|>"
    ),
    "glm4": TokenizerFamily(
        "glm4",
        ("chatglm", "glm4"),
        (*_GLM, "<|observation|>"),
        "[gMASK]",
        "<|endoftext|>",
        "<|user|>",
        flags=_NO_BOS,
    ),
    "stablelm2": TokenizerFamily(
        "stablelm2", ("stablelm",), (*_CHATML, *_FIM, "<|reg_extra|>"), "<|endoftext|>", "<|im_end|>"
    ),
    "starcoder": TokenizerFamily(
        "starcoder",
        ("starcoder2",),
        ("<|endoftext|>", *_CODE_FIM, "<repo_name>", "<file_sep>", "<issue_start>"),
        "<|endoftext|>",
        "<|endoftext|>",
    ),
    "refact": TokenizerFamily(
        "refact",
        ("granite", "granitemoe"),
        (
            "<|end_of_text|>",
            *_CODE_FIM,
            "<reponame>",
            "<|start_of_role|>",
            "<|end_of_role|>",
            "<|tool_call|>",
        ),
        "<|end_of_text|>",
        "<|end_of_text|>",
        flags=_NO_BOS,
    ),
    "olmo": TokenizerFamily(
        "olmo",
        ("olmo", "olmoe", "gptneox", "stablelm"),
        ("<|endoftext|>", "<|padding|>"),
        "<|endoftext|>",
        "<|endoftext|>",
        literal=("  ", "   ", "|||IP_ADDRESS|||"),
    ),
    "olmo2": TokenizerFamily(
        "dbrx",
        ("olmo2",),
        (*_CHATML, *_FIM[:3], "<|pad|>", "<|endofprompt|>"),
        "<|endoftext|>",
        "<|endoftext|>",
    ),
    "command-r": TokenizerFamily(
        "command-r", ("command-r", "cohere2"), _COHERE, "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", flags=_BOS
    ),
    "deepseek-llm": TokenizerFamily(
        "deepseek-llm", ("llama", "deepseek", "deepseek2"), _DEEPSEEK, *_DEEPSEEK, flags=_BOS
    ),
    "deepseek-coder": TokenizerFamily(
        "deepseek-coder",
        ("llama", "deepseek2"),
        (*_DEEPSEEK, "<|EOT|>"),
        _DEEPSEEK[0],
        "<|EOT|>",
        literal=_DEEPSEEK_FIM,
        flags=_BOS,
    ),
    "deepseek-v3": TokenizerFamily(
        "deepseek-v3",
        ("deepseek2",),
        (*_DEEPSEEK, "<｜▁pad▁｜>", *_DEEPSEEK_FIM, "<｜User｜>", "<｜Assistant｜>"),
        *_DEEPSEEK,
        flags=_BOS,
    ),
    "gpt-oss": TokenizerFamily("gpt-4o", ("gpt-oss",), _HARMONY, "<|startoftext|>", "<|return|>"),
    "falcon": TokenizerFamily(
        "falcon",
        ("falcon",),
        (">>TITLE<<", ">>QUESTION<<", "<|endoftext|>"),
        "<|endoftext|>",
        "<|endoftext|>",
    ),
    "mpt": TokenizerFamily(
        "mpt",
        ("mpt",),
        ("<|endoftext|>", "<|padding|>", "<|im_start|>", "<|im_end|>"),
        "<|endoftext|>",
        "<|endoftext|>",
        literal=("  ", "     "),
    ),
    "bloom": TokenizerFamily("bloom", ("bloom",), ("<unk>", "<s>", "</s>", "<pad>"), "<s>", "</s>"),
    "exaone": TokenizerFamily(
        "exaone",
        ("exaone",),
        ("[PAD]", "[BOS]", "[EOS]", "[UNK]", "[|system|]", "[|endofturn|]"),
        "[BOS]",
        "[|endofturn|]",
    ),
}


def family_strings(family: TokenizerFamily) -> list[str]:
    """Texts in which the family's tokens meet words, spaces and digits, and one without any."""
    tokens = [*family.control, *family.literal, *family.normal]
    joined = [f"{first}a b{second} 12" for first, second in zip(tokens, tokens[1:] + tokens[:1], strict=True)]
    return ["Hello, 1234 worlds!\n\n  it's HTTPServer 東京", " ".join(tokens), "".join(joined)]


def family_metadata(family: TokenizerFamily, strings: Sequence[str]) -> dict[str, Any]:
    """GGUF metadata: the family's tokens and keys around bytes and pieces made of ``strings``."""
    kinds = dict.fromkeys(family.control, CONTROL) | dict.fromkeys(family.literal, USER_DEFINED)
    special = dict.fromkeys(family.normal, NORMAL) | kinds
    metadata: dict[str, Any] = {"general.name": "family"}
    if family.pre:
        pieces = [pair for pair in byte_pairs(strings) if pair not in special]
        tokens = [*byte_alphabet().values(), *pieces, *special]
        types = [NORMAL] * (len(tokens) - len(special)) + list(special.values())
        metadata["tokenizer.ggml.merges"] = [f"{pair[0]} {pair[1]}" for pair in pieces]
    else:
        pieces = trained_pieces(strings, {"<unk>", *special})
        byte_names = [f"<0x{byte:02X}>" for byte in range(256)]
        tokens = ["<unk>", *special, *byte_names, *pieces]
        types = [UNKNOWN, *special.values(), *[BYTE] * 256, *[NORMAL] * len(pieces)]
        scores = [0.0] * (len(tokens) - len(pieces)) + [-float(rank) for rank in range(len(pieces))]
        metadata |= {"tokenizer.ggml.scores": scores, "tokenizer.ggml.unknown_token_id": 0}
    named = {"bos_token_id": family.bos, "eos_token_id": family.eos, "eot_token_id": family.eot}
    return metadata | {
        "tokenizer.ggml.model": "gpt2" if family.pre else "llama",
        "tokenizer.ggml.pre": family.pre or "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        **{f"tokenizer.ggml.{key}": tokens.index(text) for key, text in named.items() if text is not None},
        **{f"tokenizer.ggml.{key}": value for key, value in family.flags},
    }
