"""Renders a checkpoint's chat template, code from a stranger: in Jinja's immutable sandbox, and bounded.

A template sees and may call what transformers gives it (transformers.utils.chat_template_utils). Loop rounds
and calls are counted, and sizes are checked before each operation that makes something longer, so that a
template can neither hang nor fill the memory.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import wraps
from itertools import repeat
from math import prod
from time import monotonic
from typing import Any, Final

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from acestep_gguf.errors import PromptError

MAX_TEMPLATE_CHARS: Final = 2**18
MAX_SIZE: Final = 2**22  # characters and items that one operation may take or give
MAX_STEPS: Final = 10**6
MAX_SECONDS: Final = 10.0
MAX_EXPONENT: Final = 64
MAX_INDENT: Final = 16

# Operations whose result is as long as the product of what they are given, not its sum.
_GROWING: Final = frozenset(
    {"replace", "join", "indent", "format", "center", "ljust", "rjust", "zfill", "expandtabs", "translate"}
)
_OPERATORS: Final = {"*": "replace", "%": "format"}  # operators that grow in the same way
# Filters that no chat template needs and that are not worth bounding.
_REMOVED: Final = (
    "batch", "center", "filesizeformat", "pprint", "random", "slice", "urlize", "wordwrap", "xmlattr",
)  # fmt: skip
_LONG_NUMBER: Final = re.compile(r"\d{5}")  # such as the width in "%99999999d"

Messages = Sequence[Mapping[str, Any]]


class ChatTemplate:
    """A compiled template.

    Raises:
        PromptError: it is too long or not valid Jinja.
    """

    def __init__(self, source: str, template_tokens: Mapping[str, str]) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise PromptError(f"the chat template has {len(source)} characters: it is no sound template.")
        self._tokens = dict(template_tokens)
        self._environment = _Sandbox()
        try:
            self._template = self._environment.from_string(source)
        except (TemplateError, SyntaxError, RecursionError, OverflowError) as error:
            raise PromptError(f"the chat template is not valid: {_one_line(error)}.") from error

    def render(self, messages: Messages) -> str:
        """The text of ``messages`` (plain dicts, lists and strings), and the beginning of the answer.

        Raises:
            PromptError: the template refuses the messages, fails, or does not come to an end.
        """
        self._environment.restart()
        variables = {**self._tokens, "messages": messages, "add_generation_prompt": True}
        chunks: list[str] = []
        n_chars = 0
        try:
            for chunk in self._template.generate(variables):
                chunks.append(chunk)
                n_chars += len(chunk)
                self._environment.check_size(n_chars)
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            raise PromptError(f"the chat template refuses these messages: {_one_line(error)}.") from error
        except (RecursionError, MemoryError) as error:
            raise PromptError(
                "the chat template refuses these messages: it does not come to an end."
            ) from error
        return "".join(chunks)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox that also counts steps and bounds sizes."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _GenerationTag],
            finalize=self._finalized,
        )
        for name in _REMOVED:
            del self.filters[name]
        del self.globals["lipsum"]
        self.filters["tojson"] = _to_json
        self.filters = {name: self._bounded(name, function) for name, function in self.filters.items()}
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        self.concat = self._concat  # type: ignore[method-assign]
        self.restart()

    def restart(self) -> None:
        self._steps = 0
        self._deadline = monotonic() + MAX_SECONDS

    def step(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS or monotonic() > self._deadline:
            raise SecurityError("it does not come to an end")

    def check_size(self, size: int) -> None:
        if size > MAX_SIZE:
            raise SecurityError("it writes without end")

    def call(*arguments: Any, **keywords: Any) -> Any:
        # Positional, as Jinja's own: a template may use any keyword.
        self, context, function, *operands = arguments
        self.step()
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        self.check_operands(getattr(function, "__name__", ""), [owner, *operands, *keywords.values()])
        return ImmutableSandboxedEnvironment.call(self, context, function, *operands, **keywords)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.step()
        if operator == "**" and not (isinstance(right, int | float) and abs(right) <= MAX_EXPONENT):
            raise SecurityError("an exponent is too large")
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        self.check_operands("" if numbers else _OPERATORS.get(operator, ""), [left, right])
        return super().call_binop(context, operator, left, right)

    def check_operands(self, name: str, operands: Sequence[Any]) -> None:
        sizes = [_size(operand) for operand in operands]
        self.check_size(sum(sizes))
        if name not in _GROWING:
            return
        if name == "format" and any(isinstance(o, str) and _LONG_NUMBER.search(o) for o in operands):
            raise SecurityError("a format is absurdly wide")
        numbers = [max(1, abs(operand)) for operand in operands if isinstance(operand, int)]
        self.check_size(prod([*map(max, sizes, repeat(1)), *numbers]))

    def rounds(self, items: Iterable[Any]) -> Iterator[Any]:
        """What a ``for`` loop runs over, counted."""
        for item in items:
            self.step()
            yield item

    def join(self, *parts: Any) -> str:
        """What ``~`` does; its parts were checked by ``call``."""
        return "".join(map(str, parts))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _Bounding().visit(super()._parse(source, name, filename))
        return template

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)  # copies the marks by which Jinja passes its context or environment
        def bounded(*arguments: Any, **keywords: Any) -> Any:
            self.step()
            self.check_operands(name, [*arguments, *keywords.values()])
            return function(*arguments, **keywords)

        return bounded

    def _finalized(self, value: Any) -> Any:
        self.check_size(_size(value))
        return value

    def _concat(self, strings: Iterable[str]) -> str:
        strings = list(strings)
        self.step()
        self.check_size(sum(map(len, strings)))
        return "".join(strings)


class _Bounding(NodeTransformer):
    """Puts the sandbox's ``rounds`` around what loops run over and its ``join`` in the place of ``~``."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _call("rounds", [node.iter])
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("join", node.nodes)


class _GenerationTag(Extension):
    """``{% generation %}`` marks answers for training; here it does nothing."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _call(name: str, arguments: Sequence[nodes.Node]) -> nodes.Call:
    line = arguments[0].lineno
    function = nodes.EnvironmentAttribute(name, lineno=line)
    return nodes.Call(function, list(arguments), [], None, None, lineno=line)


def _size(value: Any, known: dict[int, int] | None = None) -> int:
    """Characters and items in a value, at least 1; what is in it twice counts twice, but is counted once."""
    if isinstance(value, str | bytes):
        return len(value) + 1
    known = {} if known is None else known
    if id(value) not in known:
        items = (*value.keys(), *value.values()) if isinstance(value, Mapping) else value
        nested = isinstance(items, list | tuple | set | frozenset)
        known[id(value)] = 1 + sum(_size(item, known) for item in items) if nested else 1
    return known[id(value)]


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without Jinja's escaping of HTML, as in transformers."""
    indent = None if indent is None else min(indent, MAX_INDENT)
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format[:256])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500].rstrip(".") or type(error).__name__
