"""Text to token ids and back, with the package's ``tokenizer.json`` and its manifest section.

Text comes in and ids go out, or the reverse, one id at a time while a model generates. Plain text never
becomes a control token, streamed text never contains half a character, and nothing but the ``tokenizers``
library is needed.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from .errors import PackageError, UsageError

__all__ = ["TextStream", "Tokenizer"]

# Two-character codes made of Unicode noncharacters, which no text is meant to contain: BREAK keeps apart what
# would be the text of a control token, ESCAPED stands for a MARK that was really there.
_MARK = "\ufdd0"
_ESCAPED = _MARK + "\ufdd1"
_BREAK = _MARK + "\ufdd2"

# A space inside SentencePiece tokens; and what C's isspace() accepts, for tokens that swallow it.
_SPACE = "\u2581"
_WHITE = " \t\n\v\f\r"


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's one printable character per byte: itself where printable, else the next one from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}


_ALPHABET: Mapping[str, int] = _byte_alphabet()


class Tokenizer:
    """One vocabulary; every method may be called from several threads.

    ``source``: path of ``tokenizer.json``, or its text. ``section``: the manifest's ``tokenizer`` section.

    ``eog_ids`` end a generation, ``special_ids`` are the control tokens; ``bos_id`` and ``eos_id`` may be
    None.

    Raises: PackageError if either cannot be read or they do not belong together.
    """

    def __init__(self, source: str | Path, section: Mapping[str, Any]) -> None:
        self._backend = _load(source)
        # Plain text must not turn into control tokens, so the library never parses them: encode() does.
        self._backend.encode_special_tokens = True
        try:
            self.vocab_size: int = section["vocab_size"]
            self.bos_id: int | None = section["bos_id"]
            self.eos_id: int | None = section["eos_id"]
            self.eog_ids: frozenset[int] = frozenset(section["eog_ids"])
            self.add_bos: bool = section["add_bos"]
            self.special_ids = _expand(section["special_ids"])
            self._literal = self.special_ids | _expand(section["literal_ids"])
            self._bytes = _expand(section["byte_ids"])
            self._silent = _expand(section["silent_ids"])
            self._fim: dict[str, int | None] = dict(section["fim"])
            self._byte_level: bool = section["byte_level"]
            self._space_prefix: bool = section["add_space_prefix"]
        except (KeyError, TypeError, ValueError) as error:
            raise PackageError(
                f"the manifest's tokenizer section cannot be read: {error!r}",
                hint="compile the package again",
            ) from error
        size = self._backend.get_vocab_size(with_added_tokens=True)
        if size != self.vocab_size:
            raise PackageError(
                f"tokenizer.json has {size} tokens, the manifest says {self.vocab_size}",
                hint="the files come from different packages; compile again",
            )
        self._prepare_control_tokens()
        self._piece_cache: dict[int, bytes] = {}

    def _prepare_control_tokens(self) -> None:
        added = self._backend.get_added_tokens_decoder()
        tokens = [(added[token], token) for token in sorted(self.special_ids) if token in added]
        # One-character texts could not be shielded by interrupting them; no template writes such a token.
        self._control = {entry.content: token for entry, token in tokens if len(entry.content) > 1}
        swallows = {entry.content for entry, _ in tokens if entry.rstrip}
        # Longest first: an alternation takes its first match, and one control token may begin another.
        texts = sorted(self._control, key=lambda text: (-len(text), text))
        parts = [re.escape(text) + (f"[{_WHITE}]*" if text in swallows else "") for text in texts]
        self._pattern = re.compile("|".join(parts)) if parts else None
        self._openings = frozenset(text[:size] for text in texts for size in range(1, len(text)))
        self._longest = max(map(len, texts), default=0)

    # --- text to ids ------------------------------------------------------------------------------------

    def encode(self, text: str, special: bool = False, add_bos: bool | None = None) -> list[int]:
        """Ids of ``text``; the end-of-text id is never appended.

        ``special=False``: control tokens cannot be typed, their texts become ordinary tokens.
        ``special=True``: for rendered chat templates; control tokens are parsed, except where ``shield`` has
        interrupted them, and the shield's marks are removed.
        ``add_bos=None``: the begin-of-text id is put first if the model wants it, unless the text was parsed
        and already begins with it. True and False decide it.

        Raises: UsageError if ``add_bos`` is True and the model has no such token.
        """
        ids: list[int] = []
        for piece in self._split_control(text) if special else (text,):
            if isinstance(piece, int):
                ids.append(piece)
            elif piece:
                ids.extend(self._encode_plain(piece))
        if add_bos is None:
            add_bos = self.add_bos and not (special and ids[:1] == [self.bos_id])
        if add_bos and self.bos_id is None:
            raise UsageError("add_bos is set, but this model has no begin-of-text token")
        return [self.bos_id, *ids] if add_bos and self.bos_id is not None else ids

    def encode_hole(self, prefix: str, suffix: str) -> list[int]:
        """Ids of a text with a hole, up to where what belongs into it begins (fill-in-the-middle).

        The order is that of StarCoder, Code Llama, CodeGemma, DeepSeek Coder and Qwen Coder: prefix, suffix,
        middle. Neither text can produce control tokens.

        Raises: UsageError if the model has no tokens for it.
        """
        before, after, middle = (self._fim.get(role) for role in ("prefix", "suffix", "middle"))
        if before is None or after is None or middle is None:
            raise UsageError(
                "this model has no fill-in-the-middle tokens, so it cannot write between two texts",
                hint="give it a text to complete, without a suffix",
            )
        begin = [self.bos_id] if self.add_bos and self.bos_id is not None else []
        prefix_ids, suffix_ids = (self.encode(text, add_bos=False) for text in (prefix, suffix))
        return [*begin, before, *prefix_ids, after, *suffix_ids, middle]

    def shield(self, text: str) -> str:
        """``text`` of a message, changed so that ``encode(..., special=True)`` finds no control token in it.

        Use it on every string that a user can influence *before* rendering the chat template. Control-token
        texts are interrupted by an invisible mark after their first character, and a text that ends with the
        beginning of one (what the template puts next might complete it) gets a mark at its end; ``encode``
        takes the marks out again. Nearly all text comes back unchanged, so templates can still search and
        trim it. User-defined tokens are not control tokens: like in plain text, they stay recognised.
        """
        text = text.replace(_MARK, _ESCAPED)
        if self._pattern is None:
            return text
        while self._pattern.search(text):  # again, as control tokens may overlap
            text = self._pattern.sub(lambda match: match[0][0] + _BREAK + match[0][1:], text)
        tails = (text[-size:] for size in range(1, min(self._longest, len(text)) + 1))
        return text + _BREAK if any(tail in self._openings for tail in tails) else text

    @staticmethod
    def unshield(text: str) -> str:
        """Remove the marks of ``shield``, for showing a rendered prompt."""
        return text.replace(_BREAK, "").replace(_ESCAPED, _MARK) if _MARK in text else text

    def _split_control(self, text: str) -> Iterator[str | int]:
        """Control ids, and the texts between them without the shield's marks."""
        position = 0
        for match in self._pattern.finditer(text) if self._pattern is not None else ():
            yield self.unshield(text[position : match.start()])
            token = self._control.get(match[0])
            yield self._control[match[0].rstrip(_WHITE)] if token is None else token
            position = match.end()
        yield self.unshield(text[position:])

    def _encode_plain(self, text: str) -> list[int]:
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError):
            # Lone surrogates (a JSON "\ud83d" gives one) have no UTF-8: pair what pairs, replace the rest.
            repaired = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            return self._backend.encode(repaired, add_special_tokens=False).ids

    # --- ids to text ------------------------------------------------------------------------------------

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of whole ``ids``; bytes that are not UTF-8 become U+FFFD.

        The space that the tokenizer itself puts before a text is taken off again, so that
        ``decode(encode(text)) == text``. ``skip_special`` leaves control tokens out.

        Raises: UsageError if an id is not in the vocabulary.
        """
        return self._strip(
            b"".join(self.piece(token, skip_special) for token in ids).decode("utf-8", "replace")
        )

    def stream(self, skip_special: bool = True, strip_space: bool = False) -> TextStream:
        """A stream that turns generated ids into text as they come.

        ``strip_space``: the text begins a message instead of continuing one, so the space that the tokenizer
        puts before a text is taken off.
        """
        return TextStream(self, skip_special, strip_space and self._space_prefix)

    def piece(self, token: int, skip_special: bool = False) -> bytes:
        """The bytes that one id stands for, perhaps part of a character.

        Raises: UsageError if the id is not in the vocabulary.
        """
        if skip_special and token in self.special_ids:
            return b""
        piece = self._piece_cache.get(token)
        if piece is None:
            piece = self._piece_cache[token] = self._read_piece(token)
        return piece

    def token_text(self, token: int | None) -> str:
        """A token as the vocabulary writes it, for ``bos_token`` and ``eos_token``; "" for None."""
        return "" if token is None else self._known_text(token)

    def _known_text(self, token: int) -> str:
        text = self._backend.id_to_token(token) if 0 <= token < self.vocab_size else None
        if text is None:
            raise UsageError(f"token id {token} is not in the vocabulary of {self.vocab_size} tokens")
        return text

    def _read_piece(self, token: int) -> bytes:
        text = self._known_text(token)
        if token in self._literal:
            return text.encode()
        if token in self._silent:
            return b""
        if token in self._bytes:
            return bytes((int(text[3:5], 16),))
        if self._byte_level:
            return b"".join(
                char.encode() if (byte := _ALPHABET.get(char)) is None else bytes((byte,)) for char in text
            )
        return text.replace(_SPACE, " ").encode()

    def _strip(self, text: str) -> str:
        return text[1:] if self._space_prefix and text[:1] == " " else text


class TextStream:
    """Text of ids that arrive one at a time.

    Works on bytes with an incremental UTF-8 decoder: the library's ``DecodeStream`` raised "Invalid prefix"
    on 141 of 400 random id sequences of a byte-fallback vocabulary, and cannot be flushed.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool, strip_space: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._strip_space = strip_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that ``token`` completes; "" while a character is unfinished.

        Raises: UsageError if the id is not in the vocabulary.
        """
        return self._begin(self._decoder.decode(self._tokenizer.piece(token, self._skip_special)))

    def flush(self) -> str:
        """What is left at the end: "" or U+FFFD for a character that was never finished."""
        return self._begin(self._decoder.decode(b"", final=True))

    def _begin(self, text: str) -> str:
        if text and self._strip_space:
            self._strip_space = False
            return text[1:] if text[0] == " " else text
        return text


def _load(source: str | Path) -> tokenizers.Tokenizer:
    """Parse a tokenizer from JSON text or from the file that holds it."""
    if isinstance(source, str) and source.lstrip().startswith("{"):
        text, name = source, "tokenizer.json"
    else:
        name = str(source)
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PackageError(
                f"'{name}' cannot be read: {error}", hint="compile the package again"
            ) from error
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise PackageError(
            f"'{name}' cannot be read by the tokenizers library {tokenizers.__version__}: {error}",
            hint="compile the package again, or update the tokenizers library",
        ) from error


def _expand(ranges: Iterable[Sequence[int]]) -> frozenset[int]:
    """The ids of inclusive [first, last] pairs."""
    return frozenset(token for first, last in ranges for token in range(first, last + 1))
