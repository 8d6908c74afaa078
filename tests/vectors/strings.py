"""Strings that tokenizers disagree about, for comparing two of them.

A seed comes in, strings go out: the same seed always gives the same strings. Nothing here knows a tokenizer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

__all__ = ["FIXED_STRINGS", "random_strings"]

#: One string per rule that some tokenizer has.
FIXED_STRINGS: tuple[str, ...] = (
    "",
    " ",
    "   ",
    "\n",
    "\n\n \n",
    "\t\tif x:\r\n    return 1\r\n",
    "Hello, world!",
    " leading and trailing ",
    "can't we'll I'M they'RE it'S I'd we'Ve 'tis 'Llama",
    "1 12 123 1234 12345 1234567 3.14159 1,000,000 ½ ² ٣٤٥ 一二三",
    "CamelCaseWord HTTPServer ÉCOLEprimaire ПриветМир ǅungla",
    "def f(a, b):\n    return a[0]+b['k'] # x<=y && z!=w\n\n\n",
    "https://example.org/path?q=1&r=%20#frag mail@example.org",
    "日本語のテキスト、カタカナ。ひらがな！",
    "中文分词测试，没有空格。",
    "한국어 문장 입니다. ㄱㄴㄷ",
    "नमस्ते दुनिया, यह हिन्दी है।",
    "مرحبا بالعالم؟ هذا نص، عربي۔",
    "שלום עולם",
    "Ελληνικά ΚΑΙ Кириллица и ещё",
    "ไทยไม่มีช่องว่าง ລາວ ខ្មែរ မြန်မာ",
    "naïve café cafe\u0301 A\u030angstro\u0308m",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪 ☃ ♥️ €$£¥ ©®™",
    "a\u00a0b\u2003c\u3000d\u200be\ufefff\u0085g\u2028h",
    "x\u0000y\u0007z\u001b[0m",
    "!!!???...,,,;;; ---===+++***///\\\\\\ <<>> {}[]() `~^|$#@&%_",
    "＂全角！＃＄％＆テスト～",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐐀𐐨 𓀀 𠮷野家",
    "\u0378\ue000\U000e0001\U0010fffd",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    " " * 40 + "x" + "\n" * 7 + "\t" * 5,
    "<s> </s> <unk> <|im_start|>user<|im_end|> <|endoftext|> <|eot_id|> [INST] <0x0A> ▁▁",
)

_WORD_LIST = (
    "the of and to model kernel don't I'll we've it's tensor GPU wave32 RMSNorm getValue snake_case x86_64 "
    "Straße über naïve façade señor ПРИВЕТ мир Москва Ελλάδα 東京 北京 中国 モデル ひらがな 한국 서울 हिन्दी "
    "ভাষা தமிழ் عربى کتاب שלום ไทย ລາວ မြန်မာ ქართული հայերեն ኢትዮጵያ Việt tiếng Ńjörð ǆ ﬁ ℌ Ⅷ ½ ٣ १२"
)
_WORDS = _WORD_LIST.split()
_SPACES = (" ", " ", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", " \n ", "\u00a0", "\u3000", "\u2009", "")
_SYMBOLS = tuple("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~§¿«»…—–“”‘’、。！？；：€£¥₹±×÷≤≥∑√→☃★🎉")
_RANGES = (
    (0x00, 0x7F),
    (0x80, 0x24F),
    (0x250, 0x36F),
    (0x370, 0x52F),
    (0x590, 0x6FF),
    (0x900, 0xDFF),
    (0xE00, 0x10FF),
    (0x1100, 0x11FF),
    (0x1E00, 0x20CF),
    (0x2100, 0x27BF),
    (0x3000, 0x30FF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xFB00, 0xFDCF),
    (0xFE00, 0xFFEF),
    (0x10000, 0x10FFF),
    (0x1F300, 0x1FAFF),
    (0x20000, 0x2A6DF),
)


def _part(rng: random.Random, tokens: Sequence[str]) -> str:
    kind = rng.randrange(9)
    if kind <= 2:
        return rng.choice(_WORDS)
    if kind == 3:
        return str(rng.randrange(10 ** rng.randrange(1, 10)))
    if kind == 4:
        return rng.choice(_SYMBOLS) * rng.choice((1, 1, 1, 2, 3))
    if kind == 5:
        return rng.choice(_WORDS).swapcase() + rng.choice(("'s", "'LL", "'t", "", "ing"))
    if kind == 6:
        return "".join(chr(rng.randint(*rng.choice(_RANGES))) for _ in range(rng.randrange(1, 6)))
    if kind == 7:
        return rng.choice(_SPACES) * rng.randrange(1, 4)
    return rng.choice(tokens) if tokens else rng.choice(FIXED_STRINGS)


def random_strings(count: int, seed: int, tokens: Sequence[str] = ()) -> list[str]:
    """``count`` strings of up to 14 parts: words of many scripts, digits, symbols, spaces, any characters.

    ``tokens``: texts of the vocabulary under test, to be mixed in (control tokens, for example).
    """
    rng = random.Random(seed)
    strings = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randrange(1, 15)):
            parts += [_part(rng, tokens), rng.choice(_SPACES)]
        strings.append("".join(parts))
    return strings
