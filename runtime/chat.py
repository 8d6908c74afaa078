"""Chat messages to one prompt, through the model's own chat template.

A template and messages come in, the prompt text goes out. Templates are untrusted programs from a model file:
they run in a sandbox with limits on size and time, and never see anything but the messages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from types import CodeType
from typing import Any, NoReturn

import jinja2

from .errors import ChatTemplateError, ForgeRuntimeError, UsageError
from .sandbox import Budget, Limits, TemplateSandbox, bound_template

__all__ = ["Limits", "normalise_messages", "render"]


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos_token: str,
    eos_token: str,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    extra: Mapping[str, Any] | None = None,
    shield: Callable[[str], str] | None = None,
    now: datetime | None = None,
    limits: Limits | None = None,
) -> str:
    """Render a conversation as the prompt that the model was trained on.

    ``messages``: mappings with ``role`` and ``content``, as chat APIs send them (see normalise_messages).
    ``extra``: further template variables, such as ``enable_thinking``. ``now``: what ``strftime_now`` shows
    (default: the local time). ``shield``: applied to every string of ``messages``, ``tools`` and ``extra``
    before rendering; give ``Tokenizer.shield`` so that no message can inject control tokens, and pass the
    result to ``Tokenizer.encode(..., special=True)``, which removes the shield's marks.

    Raises: UsageError if the messages are malformed; ChatTemplateError, with the line where known, if the
    template is broken, rejects the messages, or passes a limit.
    """
    limits = limits or Limits()
    variables: dict[str, Any] = {
        **dict(extra or {}),
        "messages": normalise_messages(messages),
        "tools": None if tools is None else list(tools),
        "add_generation_prompt": add_generation_prompt,
    }
    if shield is not None:
        variables = {name: _shielded(value, shield) for name, value in variables.items()}
    variables |= {
        "bos_token": bos_token,
        "eos_token": eos_token,
        "raise_exception": _raise_exception,
        "strftime_now": _clock(now),
    }
    try:
        return _run(template, variables, limits)
    except ForgeRuntimeError:
        raise
    except RecursionError:
        raise ChatTemplateError("the chat template calls itself without end") from None
    except Exception as error:  # a template can raise anything that Python expressions raise
        raise ChatTemplateError(
            f"the chat template fails{_place(error)}: {error}",
            hint="the template may not support these messages, or needs variables that were not given",
        ) from error


def normalise_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copies of ``messages`` in the form that templates expect.

    A ``content`` that is a list of text parts becomes one text, parts joined by newlines; the ``arguments``
    of tool calls become mappings where they are JSON texts of objects. Everything else is left as it is.

    Raises: UsageError if there is no message, a role is missing, or a part is not text.
    """
    if isinstance(messages, str | Mapping) or not messages:
        raise UsageError("'messages' must be a list with at least one message")
    return [_normalise_message(index, message) for index, message in enumerate(messages)]


def _normalise_message(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UsageError(f"message {index} must be a mapping with a 'role', found {message!r:.200}")
    copy = dict(message)
    content = copy.get("content")
    if content is not None and not isinstance(content, str):
        copy["content"] = _join_parts(index, content)
    if copy.get("tool_calls"):
        copy["tool_calls"] = [_parse_arguments(call) for call in copy["tool_calls"]]
    return copy


def _join_parts(index: int, content: Any) -> str:
    if not isinstance(content, list | tuple):
        raise UsageError(f"the content of message {index} must be a text or a list of parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise UsageError(
                f"message {index} has a part of type {kind!r}, expected 'text'",
                hint="this package takes text only",
            )
        texts.append(part["text"])
    return "\n".join(texts)


def _parse_arguments(call: Any) -> Any:
    if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
        return call
    function = dict(call["function"])
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except ValueError:
            parsed = None
        if isinstance(parsed, dict):
            function["arguments"] = parsed
    return {**call, "function": function}


def _shielded(value: Any, shield: Callable[[str], str]) -> Any:
    """``value`` with every string in it shielded, keys included."""
    if isinstance(value, str):
        return shield(value)
    if isinstance(value, Mapping):
        return {_shielded(key, shield): _shielded(item, shield) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shielded(item, shield) for item in value]
    return value


@lru_cache(maxsize=8)
def _compiled(template: str, limits: Limits) -> CodeType:
    """The template's code; it holds no state, so renderings share it."""
    return bound_template(template, limits)


def _run(template: str, variables: Mapping[str, Any], limits: Limits) -> str:
    code = _compiled(template, limits)
    budget = Budget(limits)
    sandbox = TemplateSandbox(budget)
    program = jinja2.Template.from_code(sandbox, code, sandbox.make_globals(None))
    pieces: list[str] = []
    size = 0
    for piece in program.generate(variables):
        size += len(piece)
        budget.output(size)
        pieces.append(piece)
    return "".join(pieces)


def _raise_exception(message: Any) -> NoReturn:
    """What templates call to reject a conversation."""
    raise ChatTemplateError(f"the chat template rejects the messages: {message}")


def _clock(now: datetime | None) -> Callable[[str], str]:
    def strftime_now(pattern: str) -> str:
        if not isinstance(pattern, str) or len(pattern) > 100 or any(char.isdigit() for char in pattern):
            raise ChatTemplateError(f"the chat template asks for the date as {pattern!r:.120}")
        return (now or datetime.now()).strftime(pattern)

    return strftime_now


def _place(error: Exception) -> str:
    """ " in line N" of the template, from a syntax error or from the traceback that Jinja rewrote."""
    line = error.lineno if isinstance(error, jinja2.TemplateSyntaxError) else None
    trace = error.__traceback__
    while trace is not None and line is None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f" in line {line}"
