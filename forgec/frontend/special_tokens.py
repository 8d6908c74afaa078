"""Which tokens of a GGUF vocabulary are special, and what each is for.

Token texts, token types and the ``tokenizer.ggml.*_id`` keys come in; effective types, the ids that end a
generation, and the fill-in-the-middle ids go out. It follows llama.cpp's rules, which correct files whose
types are wrong by looking at well-known texts, and never touches how text is cut or merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from forgec.errors import UnsupportedModelError
from forgec.frontend.gguf_values import described

__all__ = ["FimIds", "SpecialTokens", "TokenType", "find_special_tokens"]


class TokenType(IntEnum):
    """``tokenizer.ggml.token_type`` values. Source: llama.h, ``enum llama_token_type``."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class FimIds:
    """Fill-in-the-middle token ids; ``None`` where the vocabulary has no such token."""

    prefix: int | None = None
    suffix: int | None = None
    middle: int | None = None
    pad: int | None = None
    repository: int | None = None
    separator: int | None = None

    @property
    def complete(self) -> bool:
        """Whether a text with a hole can be written: prefix, suffix and middle are known."""
        return None not in (self.prefix, self.suffix, self.middle)


@dataclass(frozen=True)
class SpecialTokens:
    """Special ids of a vocabulary and the corrected type of every token.

    ``types``: one TokenType per token. ``eog_ids``: every id that ends a generation, ascending.
    """

    types: tuple[TokenType, ...]
    bos_id: int | None
    eos_id: int | None
    eot_id: int | None
    unk_id: int | None
    pad_id: int | None
    eog_ids: tuple[int, ...]
    fim: FimIds


# A converter that has no such token sometimes writes -1 into the unsigned field.
_NO_TOKEN = 0xFFFFFFFF

_EOT_TEXTS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<end_of_utterance>",
)
_EOM_TEXTS = ("<|eom_id|>",)
_EOG_TEXTS = (
    *_EOT_TEXTS,
    *_EOM_TEXTS,
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
)
# gpt-oss marks the parts of a message with these: they are structure that must stay visible.
_VISIBLE_TEXTS = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")

_FIM_KEYS: Mapping[str, tuple[str, ...]] = {
    "prefix": ("fim_pre_token_id", "prefix_token_id"),
    "suffix": ("fim_suf_token_id", "suffix_token_id"),
    "middle": ("fim_mid_token_id", "middle_token_id"),
    "pad": ("fim_pad_token_id",),
    "repository": ("fim_rep_token_id",),
    "separator": ("fim_sep_token_id",),
}
_FIM_TEXTS: Mapping[str, tuple[str, ...]] = {
    "prefix": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<\uff5cfim\u2581begin\uff5c>",
        "<PRE>",
        "\u2581<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "suffix": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<\uff5cfim\u2581hole\uff5c>",
        "<SUF>",
        "\u2581<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "middle": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<\uff5cfim\u2581end\uff5c>",
        "<MID>",
        "\u2581<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "repository": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "separator": ("<|file_sep|>",),
}


def _token_id(metadata: Mapping[str, Any], key: str, vocab_size: int, *, needed: bool = True) -> int | None:
    """The id under ``tokenizer.ggml.<key>``, or None.

    An id outside the vocabulary is refused if generation depends on it (``needed``), else it is None.
    """
    full = f"tokenizer.ggml.{key}"
    value = metadata.get(full)
    if value is None:
        return None
    if isinstance(value, bool) or hasattr(value, "__len__") or not hasattr(value, "__index__"):
        raise UnsupportedModelError(f"'{full}' is {described(value)}, expected a token id")
    token = int(value)
    if token in (-1, _NO_TOKEN):
        return None
    if not 0 <= token < vocab_size:
        if not needed:
            return None
        raise UnsupportedModelError(
            f"'{full}' is {token}, but the vocabulary has {vocab_size} tokens",
            hint="the file's metadata is inconsistent; convert the model again",
        )
    return token


def _first_known(texts: Sequence[str], ids: Mapping[str, int]) -> int | None:
    """The first of ``texts`` that is a token. (llama.cpp takes whichever its hash map yields first.)"""
    return next((ids[text] for text in texts if text in ids), None)


def _find_fim(
    metadata: Mapping[str, Any], ids: Mapping[str, int], types: list[TokenType], vocab_size: int
) -> FimIds:
    """Fill-in-the-middle ids by key, else by text; a token found by text becomes a control token."""
    found: dict[str, int | None] = {}
    for role, keys in _FIM_KEYS.items():
        token: int | None = None
        for key in keys:  # the later, deprecated key wins in llama.cpp
            named = _token_id(metadata, key, vocab_size, needed=False)
            token = token if named is None else named
        if token is None:
            token = _first_known(_FIM_TEXTS[role], ids)
            if token is not None:
                types[token] = TokenType.CONTROL
        found[role] = token
    return FimIds(**found)


def _drop_false_ends(tokens: Sequence[str], eog: set[int], types: list[TokenType]) -> None:
    """Two texts end a generation in most vocabularies and mean something else in a few."""
    by_text = {tokens[token]: token for token in eog}
    calls = {"<|call|>", "<|calls|>"} & by_text.keys()
    returns = {"<|return|>", "<|flush|>"} & by_text.keys()
    if "<|end|>" in by_text and calls and returns:
        # Harmony and Solar end a *message* with <|end|>, and the generation with a return or a call.
        eog.discard(by_text["<|end|>"])
        types[by_text["<|end|>"]] = TokenType.USER_DEFINED
    if "</s>" in by_text and ({"<|tool_response>", "<|plamo:eos|>"} & by_text.keys()):
        # Gemma 4 and PLaMo: "</s>" is the HTML strikethrough tag, an ordinary token.
        eog.discard(by_text["</s>"])
        types[by_text["</s>"]] = TokenType.NORMAL


def find_special_tokens(
    metadata: Mapping[str, Any],
    tokens: Sequence[str],
    ids: Mapping[str, int],
    types: Sequence[TokenType],
    *,
    sentencepiece: bool,
) -> SpecialTokens:
    """Apply llama.cpp's rules for special tokens to a vocabulary.

    ``ids`` maps each text of ``tokens`` to its index. ``sentencepiece`` vocabularies without the keys get
    ids 1 and 2 for begin and end, if those tokens are in fact ``<s>`` and ``</s>``.

    Raises: UnsupportedModelError if a named begin or end id is outside the vocabulary.
    Source: llama.cpp, ``llama_vocab::impl::load``.
    """
    corrected = list(types)
    size = len(tokens)
    bos_id = _token_id(metadata, "bos_token_id", size)
    eos_id = _token_id(metadata, "eos_token_id", size)
    eot_id = _token_id(metadata, "eot_token_id", size)
    eom_id = _token_id(metadata, "eom_token_id", size)
    if sentencepiece:
        if "tokenizer.ggml.bos_token_id" not in metadata and ids.get("<s>") == 1:
            bos_id = 1
        if "tokenizer.ggml.eos_token_id" not in metadata and ids.get("</s>") == 2:
            eos_id = 2

    for text in _EOG_TEXTS:
        if text in ids:
            corrected[ids[text]] = TokenType.CONTROL
    if eot_id is None:
        eot_id = _first_known(_EOT_TEXTS, ids)
    fim = _find_fim(metadata, ids, corrected, size)

    eog = {ids[text] for text in _EOG_TEXTS if text in ids}
    eog |= {token for token in (fim.pad, fim.repository, fim.separator) if token is not None}
    for text in _VISIBLE_TEXTS:
        if text in ids:
            corrected[ids[text]] = TokenType.USER_DEFINED
    eog |= {token for token in (eos_id, eot_id, eom_id) if token is not None}
    _drop_false_ends(tokens, eog, corrected)

    return SpecialTokens(
        types=tuple(corrected),
        bos_id=bos_id,
        eos_id=eos_id,
        eot_id=eot_id,
        unk_id=_token_id(metadata, "unknown_token_id", size, needed=False),
        pad_id=_token_id(metadata, "padding_token_id", size, needed=False),
        eog_ids=tuple(sorted(eog)),
        fim=fim,
    )
