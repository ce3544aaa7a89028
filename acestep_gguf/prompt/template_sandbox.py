"""Jinja with what chat templates use, and nothing else: every operation is in these tables, with its price.

Of some seventy published templates none needs more. What is not in the tables is refused: syntax at once, a
filter, test or method when a rendering reaches it.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import wraps
from typing import Any, Final, NoReturn, cast

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from acestep_gguf.prompt.template_budget import CHARACTER, Budget, check_number

MAX_NODES: Final = 10_000
MAX_DEPTH: Final = 100
MAX_DATE_CHARS: Final = 128

Price = Callable[..., None]

_SYNTAX: Final = frozenset(
    {
        nodes.Add, nodes.And, nodes.Assign, nodes.AssignBlock, nodes.Break, nodes.Call, nodes.Compare,
        nodes.Concat, nodes.CondExpr, nodes.Const, nodes.Continue, nodes.Dict, nodes.Div, nodes.Filter,
        nodes.FilterBlock, nodes.FloorDiv, nodes.For, nodes.Getattr, nodes.Getitem, nodes.If, nodes.Keyword,
        nodes.List, nodes.Macro, nodes.Mod, nodes.Mul, nodes.NSRef, nodes.Name, nodes.Neg, nodes.Not,
        nodes.Operand, nodes.Or, nodes.Output, nodes.Pair, nodes.Pos, nodes.Pow, nodes.Scope, nodes.Slice,
        nodes.Sub, nodes.Template, nodes.TemplateData, nodes.Test, nodes.Tuple, nodes.With,
    }
)  # fmt: skip

FILTERS: Final[Mapping[str, Price]] = {
    "abs": Budget.numbers,
    "capitalize": Budget.copied,
    "count": Budget.free,
    "d": Budget.free,
    "default": Budget.free,
    "dictsort": Budget.ordered,
    "first": Budget.free,
    "float": Budget.parsed,
    "indent": Budget.indented,
    "int": Budget.parsed,
    "items": Budget.listed,
    "join": Budget.joined,
    "last": Budget.free,
    "length": Budget.free,
    "list": Budget.listed,
    "lower": Budget.copied,
    "map": Budget.listed,
    "max": Budget.ordered,
    "min": Budget.ordered,
    "reject": Budget.listed,
    "rejectattr": Budget.listed,
    "replace": Budget.replaced,
    "reverse": Budget.listed,
    "safe": Budget.copied,
    "select": Budget.listed,
    "selectattr": Budget.listed,
    "sort": Budget.ordered,
    "string": Budget.written,
    "title": Budget.copied,
    "tojson": Budget.serialized,
    "trim": Budget.trimmed,
    "unique": Budget.ordered,
    "upper": Budget.copied,
}

_COMPARING: Final = (
    "!=", "<", "<=", "==", ">", ">=", "eq", "equalto", "ge", "greaterthan", "gt", "in", "le", "lessthan",
    "lt", "ne",
)  # fmt: skip
_ASKING: Final = (
    "boolean", "defined", "false", "float", "integer", "iterable", "mapping", "none", "number", "sameas",
    "sequence", "string", "true", "undefined",
)  # fmt: skip
TESTS: Final[Mapping[str, Price]] = {
    **dict.fromkeys(_COMPARING, Budget.compared),
    **dict.fromkeys(("divisibleby", "even", "odd"), Budget.numbers),
    **dict.fromkeys(("lower", "upper"), Budget.copied),
}

STRING_METHODS: Final[Mapping[str, Price]] = {
    "capitalize": Budget.copied,
    "count": Budget.compared,
    "endswith": Budget.looked_up,
    "find": Budget.compared,
    "format": Budget.formatted,
    "index": Budget.compared,
    "isalnum": Budget.compared,
    "isalpha": Budget.compared,
    "isdigit": Budget.compared,
    "islower": Budget.compared,
    "isspace": Budget.compared,
    "isupper": Budget.compared,
    "join": Budget.joined_by,
    "lower": Budget.copied,
    "lstrip": Budget.trimmed,
    "removeprefix": Budget.compared,
    "removesuffix": Budget.compared,
    "replace": Budget.replaced,
    "rstrip": Budget.trimmed,
    "split": Budget.split,
    "startswith": Budget.looked_up,
    "strip": Budget.trimmed,
    "title": Budget.copied,
    "upper": Budget.copied,
}
DICT_METHODS: Final[Mapping[str, Price]] = {
    "get": Budget.looked_up,
    "items": Budget.free,
    "keys": Budget.free,
    "values": Budget.free,
}
_LOOP_ATTRIBUTES: Final = frozenset(
    {
        "changed", "cycle", "depth", "depth0", "first", "index", "index0", "last", "length", "nextitem",
        "previtem", "revindex", "revindex0",
    }
)  # fmt: skip

_ITERATING: Final = (Budget.joined, Budget.listed, Budget.ordered)
_JINJAS_OWN: Final = ("_loop_vars", "_block_vars")  # arguments that Jinja adds to calls

# Filters by which a template pays where Jinja compiles to plain Python; a template cannot spell their names.
_READ, _CONTAINER, _MADE, _ROUNDS, _CONCATENATED = "(read)", "(container)", "(made)", "(rounds)", "(~)"


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox, in which every operation is paid for."""

    intercepted_binops = frozenset({"+", "-", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _GenerationTag],
            finalize=self._finalized,
            optimized=False,  # constants that Jinja makes while it compiles are not paid for
        )
        self.budget = Budget()
        known_filters: dict[str, Callable[..., Any]] = {**self.filters, "tojson": _to_json}
        self.filters = {
            name: self._sold(name, known_filters[name], FILTERS.get(name)) for name in known_filters
        }
        asking = {name: self.tests[name] for name in _ASKING}  # they look at nothing and make nothing
        self.tests = {
            name: self._sold(name, test, TESTS.get(name)) for name, test in self.tests.items()
        } | asking
        self.filters |= {
            _READ: self._read,
            _CONTAINER: self._container,
            _MADE: self.budget.made,
            _ROUNDS: self.budget.rounds,
            _CONCATENATED: self._concatenated,
        }
        self.globals = {
            "dict": dict,
            "namespace": Namespace,
            "raise_exception": _raise_exception,
            "range": self.globals["range"],
            "strftime_now": _strftime_now,
        }
        self.concat = self._concat  # type: ignore[method-assign]

    def call(self, context: Context, function: Any, /, *operands: Any, **named: Any) -> Any:
        """A call of a macro, of a method or of one of the globals."""
        self.budget.enter_call(len(operands) + len(named))
        try:
            if isinstance(function, Macro):
                return super().call(context, function, *operands, **named)
            given = {name: value for name, value in named.items() if name not in _JINJAS_OWN}
            owner = getattr(function, "__self__", None)
            if isinstance(owner, str):
                operands = tuple(map(_taken, operands))
                STRING_METHODS[function.__name__](self.budget, owner, *operands, **given)
            elif isinstance(owner, dict):
                DICT_METHODS[function.__name__](self.budget, owner, *operands, **given)
            else:
                self.budget.compared(*operands, *given.values())
            return self.budget.made(super().call(context, function, *operands, **named))
        finally:
            self.budget.leave_call()

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """A binary operator among ``intercepted_binops``."""
        self.budget.operated(operator, left, right)
        return check_number(super().call_binop(context, operator, left, right))

    def getattr(self, obj: Any, attribute: str) -> Any:
        """``obj.attribute``."""
        self.budget.spend(0)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """``obj[argument]``."""
        self.budget.read(argument)
        return super().getitem(obj, argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:  # noqa: ARG002 (Jinja's signature)
        """Whether a template may see an attribute: an allow-list, where Jinja has a list of what to deny."""
        if isinstance(obj, str):
            return attr in STRING_METHODS
        if isinstance(obj, dict):
            return attr in DICT_METHODS
        if isinstance(obj, LoopContext):
            return attr in _LOOP_ATTRIBUTES
        return isinstance(obj, Namespace) and not attr.startswith("_")

    def wrap_str_format(self, value: Any) -> None:
        """``str.format`` is paid for as the other methods are; its price refuses what is unsafe."""

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _check_syntax(tree)
        template: nodes.Template = _Pricing().visit(tree)
        return template

    def _sold(self, name: str, function: Any, price: Price | None) -> Callable[..., Any]:
        """A filter or a test that is paid for when it is used."""
        n_extra = int(hasattr(function, "jinja_pass_arg"))  # Jinja passes a context before the operands

        @wraps(function)
        def sold(*operands: Any, **named: Any) -> Any:
            if price is None:
                raise SecurityError(f"it uses {name}, which no chat template needs")
            extra, operands = operands[:n_extra], operands[n_extra:]
            if price in _ITERATING:
                operands = (*map(_taken, operands[:1]), *operands[1:])
            price(self.budget, *operands, **named)
            result = check_number(function(*extra, *operands, **named))
            if isinstance(result, Iterator) and price is not Budget.free:
                return iter(list(self.budget.rounds(result)))
            return self.budget.made(result) if isinstance(result, list) else result

        return sold

    def _read(self, value: Any) -> Any:
        self.budget.read(value)
        return value

    def _container(self, value: Any) -> Any:
        value = _taken(value)
        self.budget.contained(value)
        return value

    def _concatenated(self, parts: Sequence[Any]) -> str:
        self.budget.joined(parts)
        return "".join(map(str, parts))

    def _finalized(self, value: Any) -> Any:
        self.budget.written(value)
        return value

    def _concat(self, strings: Iterable[str]) -> str:
        chunks = list(strings)
        self.budget.spend(CHARACTER * sum(map(len, chunks)))
        return "".join(chunks)


class _Pricing(NodeTransformer):
    """Puts a payment around each operation that Jinja would compile to plain Python."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(cast(nodes.Expr, node.iter), _ROUNDS)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), _CONCATENATED)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        node.expr = self._operand(node.expr, _READ)
        for operand in node.ops:
            operand.expr = self._operand(operand.expr, _CONTAINER if operand.op in {"in", "notin"} else _READ)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, _MADE) if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, _MADE)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, _MADE) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        for pair in node.items:
            pair.key, pair.value = self._operand(pair.key, _READ), self.visit(pair.value)
        return _filtered(node, _MADE)

    def _operand(self, node: nodes.Expr, price: str) -> nodes.Expr:
        """A constant, or a list of some, is no longer than the template."""
        items = node.items if isinstance(node, nodes.List | nodes.Tuple) else [node]
        if all(isinstance(item, nodes.Const) for item in items):
            return node
        return _filtered(self.visit(node), price)


class _GenerationTag(Extension):
    """``{% generation %}`` marks answers for training; here it is but a scope, as in transformers."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _check_syntax(tree: nodes.Template) -> None:
    """Refuse a template with syntax that is not in the table, or with too much of it.

    Raises:
        SecurityError: it is one.
    """
    todo: list[tuple[nodes.Node, int, bool]] = [(tree, 0, False)]
    n_nodes = 0
    while todo:
        node, depth, inside = todo.pop()
        n_nodes += 1
        if n_nodes > MAX_NODES or depth > MAX_DEPTH:
            raise SecurityError("it is too long or too deeply nested")
        kind = type(node).__name__
        if type(node) not in _SYNTAX or (isinstance(node, nodes.For) and node.recursive):
            raise SecurityError(f"line {node.lineno} uses {kind}, which no chat template needs")
        if isinstance(node, nodes.Macro) and inside:
            raise SecurityError(f"line {node.lineno} defines a macro inside a loop or a macro")
        if isinstance(node, nodes.Const):
            check_number(node.value)
            if isinstance(node.value, float) and not math.isfinite(node.value):
                raise SecurityError(f"line {node.lineno} has a number that is too large")
        inside = inside or isinstance(node, nodes.For | nodes.Macro)
        todo += [(child, depth + 1, inside) for child in node.iter_child_nodes()]


def _taken(value: Any) -> Any:
    """What a generator gives, as a list whose size is known."""
    return list(value) if isinstance(value, Iterator) else value


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without Jinja's escaping of HTML, as in transformers."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    if len(format) > MAX_DATE_CHARS:
        raise SecurityError("it writes a date of more than a line")
    return datetime.now().strftime(format)
