"""Writes tests/fixtures/chat/prompts.json: llama.cpp's own prompts for each chat format.

    pip install llama-cpp-python
    python tests/vectors/make_chat_fixtures.py

llama.cpp has these formats as C++ code (``llama_chat_apply_template``), independent of any Jinja. Nothing of
forgec is used. One list of prompts per template of ``chat_families.FAMILIES``, in the order of
``CONVERSATIONS``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import llama_cpp

from tests.vectors.chat_families import CONVERSATIONS, FAMILIES, FOLDER


def apply(oracle: str, messages: list[dict[str, str]]) -> str:
    """llama.cpp's prompt for ``messages`` in the format that it calls ``oracle``."""
    chat = (llama_cpp.llama_chat_message * len(messages))()
    for entry, message in zip(chat, messages, strict=True):
        entry.role, entry.content = message["role"].encode(), message["content"].encode()
    buffer = bytes(1 << 16)
    size = llama_cpp.llama_chat_apply_template(
        oracle.encode(), chat, len(messages), True, buffer, len(buffer)
    )
    if not 0 <= size <= len(buffer):
        raise ValueError(f"llama.cpp does not know the chat format {oracle!r}")
    return buffer[:size].decode()


def main() -> None:
    content = {
        "made_with": f"tests/vectors/make_chat_fixtures.py, llama-cpp-python {llama_cpp.__version__}",
        "prompts": {
            name: [apply(family.oracle, messages) for messages in CONVERSATIONS]
            for name, family in FAMILIES.items()
        },
    }
    target = FOLDER / "prompts.json"
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="ascii")
    temporary.replace(target)
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
