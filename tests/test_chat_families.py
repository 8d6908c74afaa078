"""The chat formats of the model families: our sandbox, plain Jinja and llama.cpp give one prompt."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from forgec.frontend.architectures import ARCHITECTURES
from runtime.chat import render
from runtime.errors import ChatTemplateError
from tests.vectors.chat_families import CONVERSATIONS, FAMILIES, FOLDER, WITHOUT_FORMAT

PROMPTS = json.loads((FOLDER / "prompts.json").read_text(encoding="ascii"))["prompts"]


def template_of(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8").removesuffix("\n")


def plain_jinja(template: str, messages: list[dict[str, str]], bos: str, eos: str) -> str:
    """What transformers does: Jinja's own sandbox with two white space rules and two functions."""

    def raise_exception(message: str) -> NoReturn:
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = json.dumps
    environment.globals["raise_exception"] = raise_exception
    variables: dict[str, Any] = {"messages": messages, "tools": None, "add_generation_prompt": True}
    return environment.from_string(template).render(**variables, bos_token=bos, eos_token=eos)


def test_every_template_has_a_family_and_every_family_its_prompts() -> None:
    assert {path.stem for path in FOLDER.glob("*.jinja")} == set(FAMILIES) == set(PROMPTS)
    assert all(len(prompts) == len(CONVERSATIONS) for prompts in PROMPTS.values())


def test_every_supported_architecture_has_a_chat_format_or_is_for_completion() -> None:
    known = {name for family in FAMILIES.values() for name in family.architectures} | set(WITHOUT_FORMAT)
    missing = set(ARCHITECTURES) - known
    assert not missing, f"add {sorted(missing)} to a row of tests/vectors/chat_families.py"


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_prompts_equal_llama_cpp_and_plain_jinja(name: str) -> None:
    family, template = FAMILIES[name], template_of(name)
    for messages, expected in zip(CONVERSATIONS, PROMPTS[name], strict=True):
        prompt = render(template, messages, bos_token=family.bos, eos_token=family.eos)
        assert prompt == family.begins + expected
        assert prompt == plain_jinja(template, messages, family.bos, family.eos)


@pytest.mark.parametrize("name", ["llama2", "mistral-v1", "gemma", "command-r"])
def test_conversations_that_a_format_cannot_express_are_rejected(name: str) -> None:
    messages = [{"role": "tool", "content": "x"}]
    with pytest.raises(ChatTemplateError, match="the chat template rejects the messages: "):
        render(template_of(name), messages, bos_token="", eos_token="")
