"""A Jinja environment in which a hostile template can neither escape nor exhaust the machine.

Template text comes in and a compiled template goes out; every loop, call, filter and text that it makes while
running is charged to a budget. Jinja's own sandbox stops escapes but not resource use; this adds the second
half. It knows nothing about chats.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from types import BuiltinMethodType, CodeType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.filters import do_indent, do_join, do_replace
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from .errors import ChatTemplateError

__all__ = ["Budget", "Limits", "TemplateSandbox", "bound_template"]


@dataclass(frozen=True)
class Limits:
    """What one rendering may use. Sizes are characters (text) or items (lists and mappings).

    ``output`` bounds the prompt and any one text, ``made`` all texts and lists together.
    """

    template: int = 512 * 1024
    output: int = 8 * 1024 * 1024
    made: int = 512 * 1024 * 1024
    items: int = 500_000
    steps: int = 2_000_000
    seconds: float = 10.0
    integer_bits: int = 4096
    width: int = 10_000


class Budget:
    """What is left for one rendering; every method raises ChatTemplateError when a limit is passed."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._steps = 0
        self._made = 0
        self._deadline = time.monotonic() + limits.seconds

    def step(self) -> None:
        """Charge one loop iteration or call, and look at the clock."""
        self._steps += 1
        if self._steps > self.limits.steps:
            raise _exceeded(f"more than {self.limits.steps} loop iterations and calls")
        if time.monotonic() > self._deadline:
            raise _exceeded(f"more than {self.limits.seconds:g} s")

    def text(self, size: int) -> None:
        """Charge a text of ``size`` characters, before it is made."""
        self.output(size)
        self._made += size
        if self._made > self.limits.made:
            raise _exceeded(f"texts of more than {self.limits.made} characters together")

    def output(self, size: int) -> None:
        """Allow a text, or the prompt so far, to have ``size`` characters; charges nothing."""
        if size > self.limits.output:
            raise _exceeded(f"a text of {size} characters (limit {self.limits.output})")

    def result(self, value: Any) -> Any:
        """Charge the result of an operation that makes no more than its input, and return it."""
        self.step()
        if isinstance(value, str | list | tuple):
            self.text(len(value))
        return value

    def width(self, value: Any) -> None:
        """Allow ``value`` as a field width or indentation."""
        if isinstance(value, int) and value > self.limits.width:
            raise _exceeded(f"a width of {value} characters (limit {self.limits.width})")

    def weigh(self, value: Any) -> Any:
        """Charge ``value`` as written out, and return it: nested lists that share parts grow fast."""
        if isinstance(value, str):
            self.text(len(value))
            return value
        items, characters, pending = 0, 0, [value]
        while pending:
            item = pending.pop()
            items += 1
            if items > self.limits.items:
                raise _exceeded(f"a value of more than {self.limits.items} items")
            if isinstance(item, str):
                characters += len(item)
            elif isinstance(item, Mapping):
                pending.extend(item.keys())
                pending.extend(item.values())
            elif isinstance(item, list | tuple | set | frozenset):
                pending.extend(item)
            elif isinstance(item, Namespace):
                pending.append(object.__getattribute__(item, "_Namespace__attrs"))
        self.text(characters)
        return value

    def bounded(self, items: Iterable[Any]) -> Iterator[Any]:
        """``items``, each charged as one step."""
        for item in items:
            self.step()
            yield item


def _exceeded(what: str) -> ChatTemplateError:
    return ChatTemplateError(
        f"the chat template wants {what}",
        hint="a template for a conversation of ordinary length needs far less; it may be broken or hostile",
    )


# Methods that templates may call on plain values; call() checks those that can make much out of little.
_STR_METHODS = (
    "capitalize casefold center count endswith find index isalnum isalpha isascii isdecimal isdigit islower "
    "isidentifier isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition "
    "removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines "
    "startswith strip swapcase title upper zfill"
)
_METHODS: tuple[tuple[type, frozenset[str]], ...] = (
    (str, frozenset(_STR_METHODS.split())),
    (dict, frozenset(("copy", "get", "items", "keys", "values"))),
    (list, frozenset(("copy", "count", "index"))),
    (tuple, frozenset(("count", "index"))),
    (int, frozenset()),
    (float, frozenset(("is_integer",))),
    (bytes, frozenset()),
)
_WIDE_METHODS = frozenset(("center", "ljust", "rjust", "zfill"))

# A field width of six digits, or one that is itself taken from the arguments.
_WIDE_PERCENT = re.compile(r"%(?:\([^)]*\))?[^a-zA-Z%]*(?:\d{6}|\*)")
_WIDE_BRACES = re.compile(r":[^{}]*(?:\d{6}|\{)")

# Filters that templates have no use for and that can make much out of little, or read beyond their input.
_REMOVED_FILTERS = (
    "attr",
    "batch",
    "center",
    "filesizeformat",
    "format",
    "pprint",
    "random",
    "slice",
    "striptags",
    "urlize",
    "wordwrap",
    "xmlattr",
)
_REMOVED_GLOBALS = ("lipsum", "cycler", "joiner")


class _GenerationTag(Extension):
    """``{% generation %}…{% endgeneration %}`` marks what an assistant wrote; here it is plain."""

    tags = {"generation"}  # noqa: RUF012 - the type that Jinja declares

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Jinja as chat templates expect it, charging everything to ``budget``.

    White space: ``trim_blocks`` and ``lstrip_blocks``. Extensions: loop controls and ``generation``.
    """

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, budget: Budget) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=False,
            autoescape=False,
            cache_size=0,
            # Folding constants would evaluate filters while compiling, outside any budget.
            optimized=False,
            finalize=_writer(budget),
            extensions=["jinja2.ext.loopcontrols", _GenerationTag],
        )
        self.budget = budget
        for name in _REMOVED_FILTERS:
            del self.filters[name]
        for name in _REMOVED_GLOBALS:
            del self.globals[name]
        self.filters = {name: _charged(function, budget) for name, function in self.filters.items()}
        self.filters |= _guarded_filters(budget)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, names in _METHODS:
            if isinstance(obj, kind):
                return attr in names
        return super().is_safe_attribute(obj, attr, value)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(obj, BuiltinMethodType) and isinstance(obj.__self__, str):
            self._check_text_call(obj.__self__, obj.__name__, args, kwargs)
        elif obj is dict or obj is Namespace:
            self.budget.weigh([*args, *kwargs.values()])
        return self.budget.result(super().call(context, obj, *args, **kwargs))

    def _check_text_call(self, text: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name in _WIDE_METHODS and args:
            self.budget.width(args[0])
        elif name == "replace" and len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
            self.budget.text(len(text) + text.count(args[0]) * len(args[1]))
        elif name == "join" and args and isinstance(args[0], list | tuple):
            self.budget.weigh(args[0])
            self.budget.text(len(text) * len(args[0]))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Jinja routes ``str.format`` through here instead of call()."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            text = value.__self__
            if _WIDE_BRACES.search(text):
                raise _exceeded(f"the field width in {text[:80]!r}")
            self.budget.weigh([*args, *kwargs.values()])
            self.budget.text(len(text) * (1 + len(args)))
            return wrapped(*args, **kwargs)

        return checked

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.budget.step()
        if isinstance(left, int) and isinstance(right, int):
            _check_integers(self.budget, operator, left, right)
        elif operator == "*":
            repeats, part = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(repeats, int) and isinstance(part, str):
                self.budget.text(len(part) * max(repeats, 0))
            elif (
                isinstance(repeats, int)
                and isinstance(part, list | tuple)
                and len(part) * repeats > (self.budget.limits.items)
            ):
                raise _exceeded(f"a list of {len(part) * repeats} items")
        elif (
            operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple)
        ):
            self.budget.text(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            if _WIDE_PERCENT.search(left):
                raise _exceeded(f"the field width in {left[:80]!r}")
            self.budget.weigh(right)
        return super().call_binop(context, operator, left, right)


def _check_integers(budget: Budget, operator: str, left: int, right: int) -> None:
    bits = left.bit_length() + right.bit_length()
    if operator == "**":
        bits = left.bit_length() * max(right, 0)
    if bits > budget.limits.integer_bits:
        raise _exceeded(f"an integer of {bits} bits (limit {budget.limits.integer_bits})")


def _writer(budget: Budget) -> Callable[[Context, Any], Any]:
    """What every ``{{ … }}`` and every literal text passes through. Wanting the context keeps Jinja from
    calling it while compiling."""

    @jinja2.pass_context
    def write(_context: Context, value: Any) -> Any:
        return budget.weigh(value)

    return write


def _charged(function: Callable[..., Any], budget: Budget) -> Callable[..., Any]:
    """A filter whose result is charged. ``wraps`` keeps Jinja's mark of which context the filter wants."""

    @wraps(function)
    def charged(*args: Any, **kwargs: Any) -> Any:
        return budget.result(function(*args, **kwargs))

    return charged


def _guarded_filters(budget: Budget) -> dict[str, Callable[..., Any]]:
    """Replacements for the filters whose result can be much larger than their input, and our own two."""

    @jinja2.pass_eval_context
    def join(context: nodes.EvalContext, value: Iterable[Any], d: str = "", attribute: Any = None) -> str:
        items = list(budget.bounded(value))
        budget.weigh(items)
        budget.text(len(str(d)) * len(items))
        joined: str = do_join(context, items, d, attribute)
        return joined

    @jinja2.pass_eval_context
    def replace(context: nodes.EvalContext, s: Any, old: Any, new: Any, count: int | None = None) -> str:
        text = str(budget.weigh(s))
        budget.text(len(text) + text.count(str(old)) * len(str(new)))
        return do_replace(context, text, str(old), str(new), count)

    def indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        budget.width(len(width) if isinstance(width, str) else width)
        size = len(width) if isinstance(width, str) else int(width)
        budget.text(len(s) + size * (s.count("\n") + 1))
        return do_indent(s, width, first, blank)

    def string(value: Any) -> str:
        return str(budget.weigh(value))

    def tojson(
        value: Any,
        indent: int | None = None,
        ensure_ascii: bool = False,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        budget.weigh(value)
        budget.width(indent)
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    return {
        "join": join,
        "replace": replace,
        "indent": indent,
        "string": string,
        "tojson": tojson,
        _BOUNDED: budget.bounded,
        _WEIGHED: budget.weigh,
        _CHARGED: budget.result,
    }


# Names with a space cannot be written in a template.
_BOUNDED = "bounded loop"
_WEIGHED = "weighed value"
_CHARGED = "charged result"


def _filter(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Bounds(NodeTransformer):
    """Puts the budget where Jinja offers no hook: loops, ``~``, literals that may nest, and literal text."""

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        # A constant passes through the writer, where template data inside a macro would be free.
        return nodes.Const(node.data, lineno=node.lineno)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, _WEIGHED) if node.ctx == "load" else node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filter(node.iter, _BOUNDED)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "join")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, _CHARGED) if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, _WEIGHED)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, _WEIGHED)


def bound_template(source: str, limits: Limits) -> CodeType:
    """Compile template text into code that any ``TemplateSandbox`` can run.

    Raises: ChatTemplateError if the text is too long; jinja2.TemplateSyntaxError if it is not a template.
    """
    if len(source) > limits.template:
        raise ChatTemplateError(
            f"the chat template has {len(source)} characters, the limit is {limits.template}",
            hint="give a shorter template",
        )
    environment = TemplateSandbox(Budget(limits))
    tree = _Bounds().visit(environment.parse(source))
    return environment.compile(tree)
