"""Renders published chat templates with the runtime's sandbox and with plain Jinja, and compares.

    pip download --no-deps --no-binary llama-cpp-python llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
    python tests/vectors/check_templates.py llama_cpp_python-*/vendor/llama.cpp/models/templates

Each ``*.jinja`` of the folder is rendered without and with a tool, for every conversation of
``chat_families``. A template may reject a conversation, if it does so on both sides. Exits with 1 if any
prompt differs. It downloads nothing and writes nothing.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from runtime.chat import render
from runtime.errors import ChatTemplateError
from tests.vectors.chat_families import CONVERSATIONS

NOW = datetime(2026, 11, 22)
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "City"}},
    "required": ["city"],
}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather <now>", "parameters": PARAMETERS},
}


class Generation(Extension):
    """``{% generation %}`` of transformers: here its content only."""

    tags = {"generation"}  # noqa: RUF012 - the type that Jinja declares

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def plain(template: str, messages: list[dict[str, str]], tools: list[Any] | None) -> str | None:
    """The prompt as transformers renders it; None where the template fails."""

    def raise_exception(message: str) -> NoReturn:
        raise ValueError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": NOW.strftime}
    try:
        return environment.from_string(template).render(
            messages=messages, tools=tools, bos_token="<s>", eos_token="</s>", add_generation_prompt=True
        )
    except Exception:  # a template can raise anything
        return None


def ours(template: str, messages: list[dict[str, str]], tools: list[Any] | None) -> str | None:
    """The prompt of the runtime; None where the template fails."""
    try:
        return render(template, messages, bos_token="<s>", eos_token="</s>", tools=tools, now=NOW)
    except ChatTemplateError:
        return None


def main(folder: Path) -> int:
    different = compared = rejected = 0
    paths = sorted(folder.glob("*.jinja"))
    for path in paths:
        template = path.read_text(encoding="utf-8")
        for messages in CONVERSATIONS:
            for tools in (None, [TOOL]):
                expected = plain(template, messages, tools)
                compared += 1
                rejected += expected is None
                if expected != ours(template, messages, tools):
                    different += 1
                    print(f"{path.name}: differs for {messages!r:.100}, {'a tool' if tools else 'no tool'}")
    print(
        f"{different}/{compared} prompts of {len(paths)} templates differ; {rejected} rejected on both sides"
    )
    return 1 if different or not paths else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
