"""A GGUF file's vocabulary, rewritten as a ``tokenizer.json`` that needs no knowledge of GGUF.

The metadata comes in; a frozen ``TokenizerSpec`` goes out, with the JSON of the ``tokenizers`` library, the
special ids and the chat templates. It never guesses: a tokenizer model or pre-tokenizer that is not known to
give llama.cpp's tokens is refused by name, and so are arrays that contradict each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from forgec.errors import UnsupportedModelError
from forgec.frontend.gguf_values import described
from forgec.frontend.pretokenizers import PreTokenizer, find_pre_tokenizer
from forgec.frontend.special_tokens import FimIds, SpecialTokens, TokenType, find_special_tokens
from forgec.frontend.tokenizer_json import Vocabulary, bpe_json, sentencepiece_json

__all__ = [
    "TOKENIZER_MODELS",
    "TokenizerSpec",
    "build_tokenizer",
    "check_chat_template",
    "describe_tokenizer",
]

#: Supported ``tokenizer.ggml.model`` values: byte-level BPE, SentencePiece BPE, and Gemma 4's mixture.
TOKENIZER_MODELS = ("gemma4", "gpt2", "llama")


@dataclass(frozen=True)
class TokenizerSpec:
    """Everything a package needs to turn text into ids and back.

    ``json``: for ``tokenizers.Tokenizer.from_str``; the same metadata always gives the same text. Control
    and unknown tokens are its *special* added tokens, user-defined ones its ordinary added tokens.
    ``bos_text``, ``eos_text``: as chat templates write them, "" where there is no such token.
    ``byte_level``: token texts use GPT-2's byte alphabet; otherwise UTF-8, U+2581 and ``<0xNN>``.
    ``eog_ids``: every id that ends a generation. ``special_ids``: control and unknown tokens, which plain
    text cannot produce and which are not shown. ``literal_ids``: user-defined tokens, matched in plain text
    and shown as written. ``byte_ids``: ``<0xNN>`` tokens. ``silent_ids``: unused tokens, shown as nothing.
    ``chat_templates``: (name, text) of the alternates to ``chat_template``. All id tuples ascend.
    """

    json: str
    model: str
    pre: str
    vocab_size: int
    byte_level: bool
    bos_id: int | None
    eos_id: int | None
    bos_text: str
    eos_text: str
    eot_id: int | None
    unk_id: int | None
    pad_id: int | None
    eog_ids: tuple[int, ...]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    special_ids: tuple[int, ...]
    literal_ids: tuple[int, ...]
    byte_ids: tuple[int, ...]
    silent_ids: tuple[int, ...]
    fim: FimIds
    chat_template: str | None
    chat_templates: tuple[tuple[str, str], ...]

    def to_manifest(self) -> dict[str, Any]:
        """The manifest's ``tokenizer`` section: all but ``json``, long id lists as [first, last] pairs."""
        section = asdict(self)
        del section["json"]
        for field in ("special_ids", "literal_ids", "byte_ids", "silent_ids"):
            section[field] = _ranges(section[field])
        section["eog_ids"] = list(self.eog_ids)
        section["chat_templates"] = dict(self.chat_templates)
        return section


def build_tokenizer(metadata: Mapping[str, Any]) -> TokenizerSpec:
    """Build the tokenizer that a GGUF file's metadata describes.

    ``metadata``: GGUF keys to values; arrays may be any sequences, NumPy arrays included.

    Raises: UnsupportedModelError if the tokenizer model or pre-tokenizer is unknown (it lists the known
    ones), or if an array is missing, of the wrong kind or length, or contradicts another.
    Source: llama.cpp ``src/llama-vocab.cpp``; ids agree with its ``llama_tokenize``.
    """
    vocabulary, spec = _read(metadata)
    if spec.model == "llama":
        document = sentencepiece_json(vocabulary, _scores(metadata, vocabulary), _space_prefix(metadata))
    else:
        merges = _strings(metadata, "tokenizer.ggml.merges")
        document = bpe_json(vocabulary, merges, find_pre_tokenizer(spec.pre))
    return replace(spec, json=document)


def describe_tokenizer(metadata: Mapping[str, Any]) -> TokenizerSpec:
    """``build_tokenizer`` without its ``json``, and without looking at the merges: half the time.

    Raises: as ``build_tokenizer``, except for merges or scores that do not fit the tokens.
    """
    _, spec = _read(metadata)
    needed = "tokenizer.ggml.scores" if spec.model == "llama" else "tokenizer.ggml.merges"
    if metadata.get(needed) is None:
        raise _missing(needed)
    return spec


def check_chat_template(spec: TokenizerSpec, render: Callable[..., str]) -> str:
    """Render the default chat template once, so that a broken one is found when compiling.

    ``render`` has the signature of the runtime's ``chat.render``; the caller loads it, because forgec never
    imports the runtime. Returns the prompt of one user message.

    Raises: UnsupportedModelError, with the renderer's complaint, if there is none or it does not render.
    """
    if spec.chat_template is None:
        raise UnsupportedModelError(
            "the file has no chat template: 'tokenizer.chat_template' is missing",
            hint="use plain completion, or give a template",
        )
    try:
        return render(
            spec.chat_template,
            [{"role": "user", "content": "Hello"}],
            bos_token=spec.bos_text,
            eos_token=spec.eos_text,
            add_generation_prompt=True,
        )
    except Exception as error:
        # The renderer belongs to the runtime, whose error classes cannot be named here.
        raise UnsupportedModelError(
            f"the chat template does not render: {error}",
            hint="compile without it for plain completion, or give a corrected template",
        ) from error


# --- reading the metadata ---------------------------------------------------------------------------------


def _text(metadata: Mapping[str, Any], key: str) -> str | None:
    value = metadata.get(key)
    if value is not None and not isinstance(value, str):
        raise UnsupportedModelError(f"'{key}' is {described(value)}, expected a string")
    return value


def _flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    value = metadata.get(key, default)
    if not isinstance(value, bool | int) or value not in (0, 1):
        raise UnsupportedModelError(f"'{key}' is {described(value)}, expected true or false")
    return bool(value)


def _array(metadata: Mapping[str, Any], key: str, length: int | None = None) -> list[Any] | None:
    """The array under ``key`` as a list, or None; it must hold at least ``length`` items."""
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, str | bytes) or not hasattr(value, "__len__") or not hasattr(value, "__iter__"):
        raise UnsupportedModelError(f"'{key}' is {described(value)}, expected an array")
    items: list[Any] = value.tolist() if hasattr(value, "tolist") else list(value)
    if length is not None and len(items) < length:
        raise UnsupportedModelError(
            f"'{key}' has {len(items)} entries for {length} tokens",
            hint="the file's metadata is inconsistent; convert the model again",
        )
    return items


def _integers(metadata: Mapping[str, Any], key: str, length: int | None = None) -> list[int] | None:
    items = _array(metadata, key, length)
    if items and set(map(type, items)) != {int}:
        bad = next(item for item in items if type(item) is not int)
        raise UnsupportedModelError(f"'{key}' holds {described(bad)}, expected integers")
    return items


def _missing(key: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the array '{key}' is missing",
        hint="the file carries no complete tokenizer; convert the model again",
    )


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    items = _array(metadata, key)
    if items is None:
        raise _missing(key)
    if set(map(type, items)) - {str}:
        bad = next(item for item in items if not isinstance(item, str))
        raise UnsupportedModelError(f"'{key}' holds {described(bad)}, expected strings")
    return items


def _pre_name(metadata: Mapping[str, Any]) -> str:
    name = _text(metadata, "tokenizer.ggml.pre")
    if name is None:
        raise UnsupportedModelError(
            "'tokenizer.ggml.pre' is missing, so it is unknown how this vocabulary cuts text into words",
            hint="the file comes from an old converter and would degrade the output; convert the model again",
        )
    return name


def _read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    texts = _strings(metadata, "tokenizer.ggml.tokens")
    if not texts:
        raise UnsupportedModelError("'tokenizer.ggml.tokens' is empty")
    if "" in texts:
        texts = [text or f"[EMPTY_{index}]" for index, text in enumerate(texts)]
    tokens = tuple(texts)
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(ids) != len(tokens):
        twice = next(text for index, text in enumerate(tokens) if ids[text] != index)
        raise UnsupportedModelError(
            f"'tokenizer.ggml.tokens' holds {twice!r} twice",
            hint="ids would be ambiguous; the converter that wrote the file is at fault",
        )
    raw = _integers(metadata, "tokenizer.ggml.token_type", len(tokens))
    if raw is None:
        return Vocabulary(tokens, ids, (TokenType.NORMAL,) * len(tokens))
    known = {member.value: member for member in TokenType}
    types = list(map(known.get, raw[: len(tokens)]))
    return Vocabulary(tokens, ids, tuple(TokenType.UNDEFINED if kind is None else kind for kind in types))


def _check_sampler(metadata: Mapping[str, Any], size: int) -> None:
    """Refuse what the sampler on the device does not do."""
    tokens = _integers(metadata, "tokenizer.ggml.suppress_tokens") or []
    suppressed = [token for token in tokens if 0 <= token < size]
    if suppressed:
        raise UnsupportedModelError(
            f"the file asks the sampler never to choose {len(suppressed)} tokens "
            f"('tokenizer.ggml.suppress_tokens'), among them {suppressed[0]}; forgec has no such sampler",
            hint="no supported architecture needs it; files of MiniMax models have such a list",
        )


def _scores(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> list[float]:
    key = "tokenizer.ggml.scores"
    scores = _array(metadata, key, len(vocabulary.tokens))
    if scores is None:
        raise _missing(key)
    if not set(map(type, scores)) <= {int, float} or np.isnan(scores).any():
        bad = next(score for score in scores if type(score) not in (int, float) or math.isnan(score))
        raise UnsupportedModelError(f"'{key}' holds {described(bad)}, expected numbers")
    return scores


def _space_swallowers(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> frozenset[int]:
    """Special tokens that take the white space after them with them: those of Phi-3, but for three.

    GGUF has no field for this attribute of Phi-3's tokenizer; llama.cpp goes by the model's name, too.
    """
    name = (_text(metadata, "general.name") or "").lower()
    if "phi-3" not in name and "phi3" not in name:
        return frozenset()
    special = vocabulary.ids_of(TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
    plain = ("<unk>", "<s>", "<|endoftext|>")
    return frozenset(token for token in special if vocabulary.tokens[token] not in plain)


def _read(metadata: Mapping[str, Any]) -> tuple[Vocabulary, TokenizerSpec]:
    """Everything but the document: the vocabulary with corrected types, and the spec."""
    model = _text(metadata, "tokenizer.ggml.model")
    if model is None:
        raise UnsupportedModelError(
            "the file has no tokenizer: 'tokenizer.ggml.model' is missing",
            hint="convert the model again, with its tokenizer files next to the weights",
        )
    if model not in TOKENIZER_MODELS:
        raise UnsupportedModelError(
            f"the tokenizer model {model!r} (tokenizer.ggml.model) is not supported; "
            f"supported are {', '.join(TOKENIZER_MODELS)}",
            hint="forgec handles byte-level BPE (gpt2, gemma4) and SentencePiece BPE (llama) vocabularies",
        )
    sentencepiece = model == "llama"
    vocabulary = _read_vocabulary(metadata)
    _check_sampler(metadata, len(vocabulary.tokens))
    special = find_special_tokens(
        metadata, vocabulary.tokens, vocabulary.ids, vocabulary.types, sentencepiece=sentencepiece
    )
    vocabulary = replace(vocabulary, types=special.types)
    vocabulary = replace(vocabulary, swallows_space=_space_swallowers(metadata, vocabulary))
    pre_name, pre = "default", None
    if not sentencepiece:
        pre_name = model if model == "gemma4" else _pre_name(metadata)
        pre = find_pre_tokenizer(pre_name)
    return vocabulary, _spec(metadata, model, pre_name, pre, vocabulary, special)


# --- the spec ---------------------------------------------------------------------------------------------


def _space_prefix(metadata: Mapping[str, Any]) -> bool:
    return _flag(metadata, "tokenizer.ggml.add_space_prefix", True)


def _ranges(ids: Sequence[int]) -> list[list[int]]:
    """Ascending ids as inclusive [first, last] pairs: control tokens come in long runs."""
    if not ids:
        return []
    breaks = [index for index, (a, b) in enumerate(pairwise(ids), 1) if b != a + 1]
    starts, ends = [0, *breaks], [*breaks, len(ids)]
    return [[ids[start], ids[end - 1]] for start, end in zip(starts, ends, strict=True)]


def _named_templates(metadata: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    head = "tokenizer.chat_template."
    names = sorted(key[len(head) :] for key in metadata if key.startswith(head))
    return tuple((name, _text(metadata, head + name) or "") for name in names)


def _spec(
    metadata: Mapping[str, Any],
    model: str,
    pre_name: str,
    pre: PreTokenizer | None,
    vocabulary: Vocabulary,
    special: SpecialTokens,
) -> TokenizerSpec:
    add_bos = _flag(metadata, "tokenizer.ggml.add_bos_token", True if pre is None else pre.add_bos)
    add_bos = add_bos or (pre is not None and pre.force_bos)
    add_eos = _flag(metadata, "tokenizer.ggml.add_eos_token", False)
    for wanted, token, name in ((add_bos, special.bos_id, "bos"), (add_eos, special.eos_id, "eos")):
        if wanted and token is None:
            raise UnsupportedModelError(
                f"the tokenizer adds a token to every text ('tokenizer.ggml.add_{name}_token'), but "
                f"'tokenizer.ggml.{name}_token_id' names none",
                hint="the file's metadata is inconsistent; convert the model again",
            )
    return TokenizerSpec(
        json="",
        model=model,
        pre=pre_name,
        vocab_size=len(vocabulary.tokens),
        byte_level=pre is not None and not pre.raw_utf8,
        bos_id=special.bos_id,
        eos_id=special.eos_id,
        bos_text="" if special.bos_id is None else vocabulary.tokens[special.bos_id],
        eos_text="" if special.eos_id is None else vocabulary.tokens[special.eos_id],
        eot_id=special.eot_id,
        unk_id=special.unk_id,
        pad_id=special.pad_id,
        eog_ids=special.eog_ids,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=pre is None and _space_prefix(metadata),
        special_ids=tuple(vocabulary.ids_of(TokenType.CONTROL, TokenType.UNKNOWN)),
        literal_ids=tuple(vocabulary.ids_of(TokenType.USER_DEFINED)),
        byte_ids=tuple(vocabulary.ids_of(TokenType.BYTE)),
        silent_ids=tuple(vocabulary.ids_of(TokenType.UNUSED, TokenType.UNDEFINED)),
        fim=special.fim,
        chat_template=_text(metadata, "tokenizer.chat_template"),
        chat_templates=_named_templates(metadata),
    )
