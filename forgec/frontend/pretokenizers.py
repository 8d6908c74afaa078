"""How text is cut into words before byte-pair merging, for every ``tokenizer.ggml.pre`` that forgec supports.

A name comes in, the regular expressions and flags that belong to it go out. The table is data: it never
looks at a vocabulary and never falls back to a default, because a wrong cut silently changes the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from forgec.errors import UnsupportedModelError

__all__ = ["PRE_TOKENIZERS", "PreTokenizer", "find_pre_tokenizer"]


@dataclass(frozen=True)
class PreTokenizer:
    """The cut that one or more ``tokenizer.ggml.pre`` names stand for.

    ``splits`` are applied in order; each cuts every piece that the earlier ones left into its matches and
    the text between them. The syntax is Oniguruma's, the engine inside the ``tokenizers`` library.
    ``ignore_merges``: a word that is itself a token is taken whole, without merging.
    ``add_bos``: the default when the file has no ``tokenizer.ggml.add_bos_token``.
    ``raw_utf8``: the vocabulary holds plain UTF-8 with U+2581 for a space and ``<0xNN>`` byte tokens,
    instead of GPT-2's byte alphabet.
    ``force_bos``: the begin-of-text id is added whatever the file says (Gemma 4 files say it wrongly).
    ``upstream``: the expression is the model's own, and llama.cpp approximates it, so ids differ on some
    texts: its engine has no case, mark or script classes (Tekken, GPT-4o, Tiny Aya, Youtu, Kimi K2: camel
    case, combining marks) and does not find non-ASCII spaces in a class (DeepSeek: U+2009, U+3000).

    Source: llama.cpp ``src/llama-vocab.cpp`` (name to expression) and, where that file quotes it, the
    expression of the model's own ``tokenizer.json``.
    """

    names: tuple[str, ...]
    splits: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    raw_utf8: bool = False
    force_bos: bool = False
    upstream: bool = False


_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"

# GPT-2: contractions, words, numbers and symbols, each with at most one leading space.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _cl100k(digits: str, contraction: str = _CONTRACTION + "|") -> str:
    """GPT-4's expression; models differ in how many digits one word may hold."""
    return contraction + rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|" + _SPACES


_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _o200k(
    digits: str, contraction: str, upper: str = _UPPER, lower: str = _LOWER, tail: str = r"[\r\n/]*"
) -> str:
    """GPT-4o's expression, which also cuts where lower case is followed by upper case."""
    lead = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{lead}{upper}*{lower}+{contraction}|{lead}{upper}+{lower}*{contraction}|{digits}|"
        rf" ?[^\s\p{{L}}\p{{N}}]+{tail}|" + _SPACES
    )


_OPTIONAL_CONTRACTION = _CONTRACTION + "?"
_NOT_HAN = r"&&[^\p{Han}]]"

_CJK_RUN = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK_V3_HEAD = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
)
_DEEPSEEK_V3 = _DEEPSEEK_V3_HEAD + r"| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES

# The cased letters of Unicode 12, as the model lists them; \p{L&} would follow the version of the engine.
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370"
    "-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-"
    "\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-"
    "\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-"
    "\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4"
    "\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a"
    "-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-"
    "\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-"
    "\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-"
    "\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-"
    "\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"

_LINES = r"[^\n]+|[\n]+"
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_LONG_SPACES = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))

_TABLE: tuple[PreTokenizer, ...] = (
    PreTokenizer(
        ("default",),
        (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    ),
    PreTokenizer(
        (
            "gpt-2",
            "phi-2",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "mpt",
            "olmo",
            "jais",
            "exaone4",
            "trillion",
            "granite-docling",
        ),
        (_GPT2,),
    ),
    PreTokenizer(
        ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"),
        (r"\p{N}", _GPT2),
    ),
    PreTokenizer(("falcon",), (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    PreTokenizer(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        (_cl100k(r"\p{N}{1,3}"),),
        ignore_merges=True,
        add_bos=True,
    ),
    PreTokenizer(("dbrx", "smaug-bpe", "chatglm-bpe"), (_cl100k(r"\p{N}{1,3}"),)),
    PreTokenizer(("glm4", "glm5"), (_cl100k(r"\p{N}{1,3}"),), ignore_merges=True),
    PreTokenizer(
        ("qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"),
        (_cl100k(r"\p{N}"),),
    ),
    PreTokenizer(("ufakzeka",), (_cl100k(r"\p{N}", contraction=""),)),
    PreTokenizer(
        ("qwen35",),
        (_CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACES,),
    ),
    PreTokenizer(("laguna",), (_LINES, _cl100k(r"\p{N}"))),
    PreTokenizer(("minicpm5",), (r"\p{N}{1,3}", _cl100k(r"\p{N}+")), ignore_merges=True),
    PreTokenizer(
        ("seed-coder",),
        (_CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|" + _SPACES,),
    ),
    PreTokenizer(
        ("bailingmoe", "bailingmoe2", "llada-moe"),
        (
            r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
            r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        ),
    ),
    PreTokenizer(
        ("exaone-moe",),
        (
            _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}|"
            r" ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        ),
    ),
    PreTokenizer(
        ("jais-2",),
        (
            _CONTRACTION
            + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
            + _LONG_SPACES
            + r"|\s{1,2}(?!\S)|\s{1}",
        ),
    ),
    PreTokenizer(
        ("deepseek-llm",),
        (
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+$",
            _DEEPSEEK_CJK,
            r"\p{N}+",
        ),
        upstream=True,
    ),
    PreTokenizer(
        ("deepseek-coder",),
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}"),
        upstream=True,
    ),
    PreTokenizer(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"),
        (r"\p{N}{1,3}", _CJK_RUN, _DEEPSEEK_V3),
    ),
    PreTokenizer(
        ("spark2_5",),
        (
            r"\p{N}{1,3}",
            _CJK_RUN,
            _DEEPSEEK_V3_HEAD + r"| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+",
            r"\p{N}",
        ),
    ),
    PreTokenizer(("poro-chat", "bloom", "gpt3-finnish"), (_BLOOM,)),
    PreTokenizer(("viking",), (_BLOOM, r"\p{N}")),
    PreTokenizer(
        ("chameleon",),
        (
            r"<sentinel:[0-9]+>",
            r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        add_bos=True,
    ),
    PreTokenizer(("superbpe",), (r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    PreTokenizer(
        ("tekken",),
        (_o200k(r"\p{N}", contraction=""),),
        ignore_merges=True,
        add_bos=True,
        upstream=True,
    ),
    PreTokenizer(
        ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"),
        (_o200k(r"\p{N}{1,3}", _OPTIONAL_CONTRACTION),),
        upstream=True,
    ),
    PreTokenizer(
        ("tiny_aya", "cohere2moe"),
        (r"\d{1,3}(?=(?:\d{3})*\b)", _o200k(r"\p{N}{1,3}", _OPTIONAL_CONTRACTION)),
        upstream=True,
    ),
    PreTokenizer(
        ("youtu",),
        (
            "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|"
            + _CJK_RUN,
            _o200k(r"\p{N}", _OPTIONAL_CONTRACTION),
        ),
        ignore_merges=True,
        upstream=True,
    ),
    PreTokenizer(
        ("kimi-k2",),
        (
            r"[\p{Han}]+|"
            + _o200k(
                r"\p{N}{1,3}",
                _OPTIONAL_CONTRACTION,
                upper="[" + _UPPER[1:-1] + _NOT_HAN,
                lower="[" + _LOWER[1:-1] + _NOT_HAN,
                tail=r"[\r\n]*",
            ),
        ),
        upstream=True,
    ),
    PreTokenizer(("gemma4",), (_LINES,), raw_utf8=True, force_bos=True),
    PreTokenizer(("sarvam-moe",), (_LINES,), raw_utf8=True),
)


def _index(table: tuple[PreTokenizer, ...]) -> Mapping[str, PreTokenizer]:
    index: dict[str, PreTokenizer] = {}
    for entry in table:
        for name in entry.names:
            if name in index:
                raise ValueError(f"pre-tokenizer {name!r} is listed twice")
            index[name] = entry
    return MappingProxyType(index)


#: Every supported ``tokenizer.ggml.pre`` value.
PRE_TOKENIZERS: Mapping[str, PreTokenizer] = _index(_TABLE)


def find_pre_tokenizer(name: str) -> PreTokenizer:
    """The entry for a ``tokenizer.ggml.pre`` value.

    Raises: UnsupportedModelError, with the supported names, if there is none.
    """
    entry = PRE_TOKENIZERS.get(name)
    if entry is None:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise UnsupportedModelError(
            f"the pre-tokenizer {name!r} (tokenizer.ggml.pre) is not supported; supported are {known}",
            hint="a guess would silently change the tokens; convert the model again with a current "
            "convert_hf_to_gguf.py if the name looks wrong, or ask for support of this name",
        )
    return entry
