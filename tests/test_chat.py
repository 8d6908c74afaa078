"""Chat templates: what they may use, how they fail, and that a hostile one stays bounded."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import pytest

import forgec.errors
import runtime.errors
from forgec.errors import ForgeError
from runtime.chat import Limits, normalise_messages, render
from runtime.errors import ChatTemplateError, ForgeRuntimeError, UsageError

USER = [{"role": "user", "content": "Hello"}]


def show(template: str, messages: Any = USER, **options: Any) -> str:
    return render(template, messages, bos_token="<s>", eos_token="</s>", **options)


def failure(template: str, **options: Any) -> ChatTemplateError:
    with pytest.raises(ChatTemplateError) as caught:
        show(template, **options)
    return caught.value


# --- what templates rely on ---------------------------------------------------------------------------------


def test_blocks_leave_no_white_space() -> None:
    template = "{{ bos_token }}\n  {% for m in messages %}\n  [{{ m.role }}]\n  {% endfor %}\n{{ eos_token }}"
    assert show(template) == "<s>\n  [user]\n</s>"


def test_variables_and_extras() -> None:
    template = "{{ add_generation_prompt }} {{ tools is none }} {{ enable_thinking }} {{ other is defined }}"
    assert show(template, extra={"enable_thinking": False}) == "True True False False"
    assert show("{{ tools[0].name }}", tools=[{"name": "f"}]) == "f"


def test_extras_cannot_replace_the_messages() -> None:
    assert (
        show("{{ messages[0].content }}{{ bos_token }}", extra={"messages": [], "bos_token": "x"})
        == "Hello<s>"
    )


def test_tojson_escapes_neither_html_nor_unicode() -> None:
    assert show("{{ tools | tojson }}", tools=[{"a": "<b>&'é"}]) == '[{"a": "<b>&\'é"}]'
    assert show("{{ tools | tojson(indent=1) }}", tools=[{}]) == "[\n {}\n]"


def test_loop_controls_and_loop_variables() -> None:
    template = (
        "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}"
        "{{ loop.index0 }}/{{ loop.length }}{{ '.' if loop.last }}"
        "{% if loop.index == 4 %}{% break %}{% endif %}{% else %}none{% endfor %}"
    )
    assert show(template, USER * 5) == "0/52/53/5"


def test_generation_blocks_are_plain_text() -> None:
    template = "{% generation %}{{ messages[0].content }}{% endgeneration %}!"
    assert show(template) == "Hello!"


def test_namespaces_macros_slices_and_concatenation() -> None:
    template = (
        "{% macro wrap(text, times=2) %}{{ '<' ~ text * times ~ '>' }}{% endmacro %}"
        "{% set ns = namespace(x='') %}{% for m in messages[1:] %}{% set ns.x = m.content %}{% endfor %}"
        "{{ wrap(ns.x) }}{{ 'a,b'.split(',') | join('+') }}{{ '%s-%02d' % ('x', 7) }}{{ '{}'.format(1) }}"
    )
    assert show(template, [*USER, {"role": "user", "content": "Bye"}]) == "<ByeBye>a+bx-071"


def test_date_is_given_by_the_caller() -> None:
    assert show("{{ strftime_now('%d %b %Y') }}", now=datetime(2026, 11, 22)) == "22 Nov 2026"
    assert show("{{ strftime_now('%Y') }}") == str(datetime.now().year)


def test_messages_are_not_changed() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "x"}], "tool_calls": [{"function": {}}]}
    ]
    before = repr(messages)
    show("{{ messages }}", messages)
    assert repr(messages) == before


def test_shield_reaches_every_string() -> None:
    template = "{{ messages | tojson }}{{ tools | tojson }}{{ extra_value }}{{ bos_token }}"
    shown = show(
        template,
        [{"role": "user", "content": "a"}],
        tools=[{"a": {"a": ["a", 1, None]}}],
        extra={"extra_value": "a"},
        shield=lambda text: text.replace("a", "@"),
    )
    assert shown == '[{"role": "user", "content": "@"}][{"@": {"@": ["@", 1, null]}}]@<s>'


# --- messages -----------------------------------------------------------------------------------------------


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert normalise_messages([{"role": "user", "content": parts}]) == [{"role": "user", "content": "a\nb"}]


def test_tool_call_arguments_become_mappings() -> None:
    def arguments(value: Any) -> Any:
        message = {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": value}}]}
        return normalise_messages([message])[0]["tool_calls"][0]["function"]["arguments"]

    assert arguments('{"city": "Ulm"}') == {"city": "Ulm"}
    assert arguments({"city": "Ulm"}) == {"city": "Ulm"}
    assert [arguments("[1]"), arguments("{")] == ["[1]", "{"]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "'messages' must be a list with at least one message"),
        ("Hello", "'messages' must be a list with at least one message"),
        ([{"content": "x"}], "message 0 must be a mapping with a 'role', found {'content': 'x'}"),
        (["x"], "message 0 must be a mapping with a 'role', found 'x'"),
        ([{"role": "user", "content": 3}], "the content of message 0 must be a text or a list of parts"),
        (
            [*USER, {"role": "user", "content": [{"type": "image_url"}]}],
            "message 1 has a part of type 'image_url', expected 'text'",
        ),
    ],
)
def test_malformed_messages_are_usage_errors(messages: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        show("x", messages)
    assert caught.value.message == message


# --- failures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "a\n{% if %}",
            "the chat template fails in line 2: Expected an expression, got 'end of statement block'",
        ),
        ("a\n\n{{ x.y }}", "the chat template fails in line 3: 'x' is undefined"),
        ("{{ 1 / 0 }}", "the chat template fails in line 1: division by zero"),
        ("{{ raise_exception('no system role') }}", "the chat template rejects the messages: no system role"),
        ("{% include 'x' %}", "the chat template fails in line 1: no loader for this environment specified"),
        ("{{ 'a' | attr('b') }}", "the chat template fails in line 1: No filter named 'attr'."),
        ("{{ strftime_now('%99999Y') }}", "the chat template asks for the date as '%99999Y'"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "the chat template calls itself without end"),
    ],
)
def test_failures_name_the_cause(template: str, message: str) -> None:
    error = failure(template)
    assert error.message == message
    assert error.exit_code == 11


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.append(1) }}",
        "{{ messages[0].update({}) }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__subclasses__() }}",
        "{{ raise_exception.__globals__.os }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ (1).to_bytes(9, 'big') }}",
        "{{ 'a'.translate({97: 'b'}) }}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ lipsum(9) }}",
    ],
)
def test_sandbox_stops_escapes(template: str) -> None:
    try:
        shown = show(template)
    except ChatTemplateError:
        return
    assert shown == ""  # Jinja answers some forbidden attributes with an undefined value


DOUBLE = "{% set n = namespace(x=START) %}{% for i in range(64) %}{% set n.x = NEXT %}{% endfor %}{{ n.x }}"


def doubling(start: str, step: str) -> str:
    return DOUBLE.replace("START", start).replace("NEXT", step)


LONG = "{% set x = 'a' * 8000000 %}"
BOMBS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "nested loops": "{% for a in range(9) %}" * 15 + "{% endfor %}" * 15,
    "recursive macro": "{% macro f(n) %}{% if n %}{{ f(n-1) ~ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "repeat text": "{{ 'a' * 10000000000 }}",
    "repeat list": "{{ ([0] * 10000000000) | length }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "square": doubling("99", "n.x * n.x"),
    "concatenate": doubling("'ab'", "n.x ~ n.x"),
    "add": doubling("'ab'", "n.x + n.x"),
    "add lists": doubling("[1]", "n.x + n.x"),
    "nest lists": doubling("[1]", "[n.x, n.x]"),
    "nest tuples": doubling("(1,)", "(n.x, n.x)"),
    "nest mappings": doubling("{}", "{'a': n.x, 'b': n.x}"),
    "nest dict()": doubling("{}", "dict(a=n.x, b=n.x)"),
    "nest namespaces": doubling("{}", "namespace(a=n.x, b=n.x)"),
    "percent width": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (1000000000, 1) }}",
    "format width": "{{ '{:1000000000}'.format(1) }}",
    "format nested": "{{ '{:{}}'.format(1, 1000000000) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "indent": "{{ 'a\nb' | indent(1000000000) }}",
    "json indent": "{{ messages | tojson(indent=1000000000) }}",
    "replace filter": "{% set x = 'a' * 1000000 %}{{ x | replace('a', x) }}",
    "replace method": "{% set x = 'a' * 1000000 %}{{ x.replace('a', x) }}",
    "join filter": "{% set x = 'a' * 1000000 %}{{ range(100000) | join(x) }}",
    "join method": "{% set x = 'a' * 1000000 %}{{ x.join(['a'] * 100000) }}",
    "set blocks": "{% set x = 'a' * 1000000 %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 40,
    "literal in a block": "{% set y %}{% for i in range(99999) %}" + "z" * 99999 + "{% endfor %}{% endset %}",
    "many copies": LONG + "".join(f"{{% set a{i} = x[1:] %}}" for i in range(2000)),
    "many filters": LONG + "".join(f"{{% set a{i} = x|upper %}}" for i in range(2000)),
    "long template": "x" * 600_000,
}


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_hostile_templates_stay_bounded(name: str) -> None:
    started = time.monotonic()
    error = failure(BOMBS[name], limits=Limits(steps=50_000, items=50_000, made=64 * 1024 * 1024))
    assert error.message.startswith(("the chat template wants ", "the chat template has 600000 characters"))
    # Seconds where it would otherwise be minutes to ages; generous, because machines differ.
    assert time.monotonic() - started < 20


def test_time_limit() -> None:
    template = "{% for a in range(9999) %}{% set x = ('ab' * 400000) | upper %}{% endfor %}"
    error = failure(template, limits=Limits(seconds=0.2, made=10**12))
    assert error.message == "the chat template wants more than 0.2 s"


def test_output_limit() -> None:
    error = failure("{% for i in range(100) %}0123456789{% endfor %}", limits=Limits(output=999))
    assert error.message == "the chat template wants a text of 1000 characters (limit 999)"
    assert len(show("{% for i in range(99) %}0123456789{% endfor %}", limits=Limits(output=999))) == 990


def test_long_conversation_is_within_the_limits() -> None:
    messages = [{"role": "user", "content": "word " * 200} for _ in range(2000)]
    template = (
        "{% macro show(m) %}<|{{ m.role }}|>{{ m.content | trim }}{% endmacro %}"
        "{% for m in messages %}{{ show(m) + '\n' }}{% endfor %}"
    )
    assert len(show(template, messages)) == 2000 * (8 + 999 + 1)


# --- errors -------------------------------------------------------------------------------------------------


def test_runtime_errors_have_the_compilers_exit_codes() -> None:
    codes = {}
    for name in runtime.errors.__all__:
        error = getattr(runtime.errors, name)
        assert issubclass(error, ForgeRuntimeError)
        codes[name] = error.exit_code
        shared = getattr(forgec.errors, name, None)
        if shared is not None:
            assert issubclass(shared, ForgeError) and shared.exit_code == error.exit_code
    assert len(set(codes.values())) == len(codes)
    assert {"UsageError", "PackageError", "DeviceError"} <= set(forgec.errors.__all__) & set(codes)
    own = set(codes) - set(forgec.errors.__all__) - {"ForgeRuntimeError"}
    taken = {getattr(forgec.errors, name).exit_code for name in forgec.errors.__all__}
    assert not {codes[name] for name in own} & taken


def test_runtime_error_carries_message_and_hint() -> None:
    error = UsageError("what", hint="how")
    assert (str(error), error.message, error.hint, UsageError("x").hint) == ("what", "what", "how", "")
