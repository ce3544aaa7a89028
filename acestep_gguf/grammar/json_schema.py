"""JSON Schema: what an answer has to be. It is checked whole before a model is loaded.

llguidance makes the grammar of it, and refuses most of what it cannot enforce. Checked here is what it would
pass over or never come to an end with; and an answer is held to a part of what the schema allows, which a
model cannot lose itself in (see ``_narrow``).
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

from acestep_gguf.errors import UsageError
from acestep_gguf.grammar.patterns import is_open, needs_quotes, trouble
from acestep_gguf.grammar.sources import text_or_file

# What is enforced, with the types that its value may have.
ENFORCED: Final[dict[str, tuple[type, ...]]] = {
    "const": (object,),
    **dict.fromkeys(("items", "additionalProperties"), (dict, bool)),
    **dict.fromkeys(("properties", "patternProperties"), (dict,)),
    **dict.fromkeys(("$ref", "pattern", "format"), (str,)),
    **dict.fromkeys(("anyOf", "oneOf", "allOf", "enum", "prefixItems", "required"), (list,)),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), (int,)),
    **dict.fromkeys(("minProperties", "maxProperties"), (int,)),
    **dict.fromkeys(
        ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), (int, float)
    ),
    "type": (str, list),
}
# They say nothing of which values are valid; ``discriminator`` is OpenAPI's, and pydantic writes it.
ANNOTATIONS: Final = frozenset(
    {
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
        *("$comment", "$schema", "$id", "$defs", "definitions"),
        *("contentEncoding", "contentMediaType", "discriminator"),
    }
)
COMBINED: Final = ("anyOf", "oneOf", "allOf", "$ref")

QUOTE_IN_JSON: Final = re.compile(r'\\[\\"]')

MAX_DEPTH: Final = 48
MAX_SUBSCHEMAS: Final = 400
MAX_NUMBER: Final = 2**53 - 1  # beyond it, JSON's readers round, and llguidance ends the process at -(2**63)
LEAST_STEP: Final = 1e-9
LEAST_RANGE: Final = 1e-3


def read_schema(source: object) -> Mapping[str, Any]:
    """The schema that ``source`` is (a dict, JSON text), names (a file), or has (a pydantic model).

    Raises:
        UsageError: it cannot be read, or is something else.
    """
    of_model = getattr(source, "model_json_schema", None)
    if callable(of_model):
        source = of_model()
    if isinstance(source, str | os.PathLike):
        text = text_or_file("json_schema", source, is_text=lambda text: text.lstrip().startswith("{"))
        try:
            source = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"json_schema is no JSON ({error}).", settings=["json_schema"]) from error
    if not isinstance(source, Mapping):
        raise _refused(f"it is {type(source).__name__}: give a dict, JSON text, a file or a pydantic model")
    return source


@dataclass(frozen=True)
class CheckedSchema:
    """A schema that can be enforced, as JSON, and whether strings may have quotes and backslashes."""

    text: str
    quotes: bool


def checked(schema: Mapping[str, Any]) -> CheckedSchema:
    """``schema``, checked and narrowed.

    Raises:
        UsageError: it is not a schema, or asks for what cannot be enforced.
    """
    try:
        text = json.dumps(schema, allow_nan=False)
        own: dict[str, Any] = json.loads(text, parse_int=_bounded(int), parse_float=_bounded(float))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"json_schema is no JSON ({error}).", settings=["json_schema"]) from error
    walk = _Walk(own)
    walk.visit(own, "#", 0)
    parts = walk.visited
    every_pattern = [pattern for part in parts for pattern in _patterns(part)]
    quotes = not any(map(is_open, every_pattern))
    constants = json.dumps([[part.get("const"), part.get("enum")] for part in parts])
    if not quotes and (QUOTE_IN_JSON.search(constants) or any(map(needs_quotes, every_pattern))):
        raise _refused('a pattern with a class like [^x] goes with no " or \\ in patterns and constants')
    if not walk.is_combined:
        for part in parts:
            _narrow(part)
    own.pop("$id", None)  # references are found by their paths in this schema
    return CheckedSchema(json.dumps(own), quotes)


@dataclass
class _Walk:
    """Visits every subschema that an answer may have to follow."""

    root: dict[str, Any]
    visited: list[dict[str, Any]] = field(default_factory=list)
    # Whether some value has to follow several subschemas together.
    is_combined: bool = False
    _open: list[str] = field(default_factory=list)
    _done: set[str] = field(default_factory=set)

    def visit(self, schema: Any, path: str, depth: int) -> None:
        if schema is True or schema is False or path in self._done:
            return
        if path in self._open:
            raise _refused(f"{path} refers to itself, without end")
        if not isinstance(schema, dict):
            raise _refused(f"{path} is {type(schema).__name__}, not an object")
        if depth > MAX_DEPTH:
            raise _refused(f"it is nested deeper than {MAX_DEPTH}")
        if len(self.visited) >= MAX_SUBSCHEMAS:
            raise _refused(f"it has more than {MAX_SUBSCHEMAS} parts")
        _check_keywords(schema, path)
        combined = [name for name in COMBINED if name in schema]
        others = ENFORCED.keys() & schema.keys() - set(combined)
        self.is_combined |= "allOf" in schema or bool(combined and (others or len(combined) > 1))
        self.visited.append(schema)
        self._open.append(path)
        for name, subschema in _subschemas(schema):
            self.visit(subschema, f"{path}/{name}", depth + 1)
        if "$ref" in schema:
            target = schema["$ref"]
            self.visit(self._resolve(target), unquote(target), depth + 1)
        self._open.pop()
        self._done.add(path)

    def _resolve(self, target: str) -> Any:
        if not re.fullmatch(r"#(/.*)?", target, re.DOTALL):
            raise _refused(f"$ref {target!r} leads out of it, only #/… is followed")
        found: Any = self.root
        for step in unquote(target).split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(name) if isinstance(found, list) else name]
            except (KeyError, IndexError, TypeError, ValueError):
                raise _refused(f"$ref {target!r} leads nowhere") from None
        return found


def _check_keywords(schema: dict[str, Any], path: str) -> None:
    if unknown := schema.keys() - ENFORCED.keys() - ANNOTATIONS:
        raise _refused(f"{', '.join(sorted(unknown))} at {path} cannot be enforced: leave it out")
    for name in schema.keys() & ENFORCED.keys():
        kinds, value = ENFORCED[name], schema[name]
        if not isinstance(value, kinds) or (int in kinds and isinstance(value, bool)):
            raise _refused(f"{name} at {path} is {value!r:.40}")
    if "$id" in schema and path != "#":
        raise _refused(f"$id at {path} changes where references lead: leave it out")
    if (least := schema.get("minProperties", 0)) > 1:  # one name written twice would count as two
        raise _refused(f"minProperties of {least} at {path} cannot be enforced: name what is required")
    for pattern in _patterns(schema):
        if (why := trouble(pattern)) is not None:
            raise _refused(f"the pattern at {path} {why}")


def _patterns(schema: dict[str, Any]) -> list[str]:
    return [schema.get("pattern", ""), *schema.get("patternProperties", {})]


def _subschemas(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in ("items", "additionalProperties"):
        if name in schema:
            yield name, schema[name]
    for name in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for index, subschema in enumerate(schema.get(name, ())):
            yield f"{name}/{index}", subschema
    for name in ("properties", "patternProperties"):
        for key, subschema in schema.get(name, {}).items():
            yield f"{name}/{key.replace('~', '~0').replace('/', '~1')}", subschema


def _narrow(schema: dict[str, Any]) -> None:
    """Leave out what a schema allows by saying nothing, and nobody wants.

    Fields that it does not name, and numbers of endless digits, in which a model can lose itself.
    """
    named = schema.get("properties")
    required = [name for name in schema.get("required", ()) if isinstance(name, str)]
    if named is not None and named.keys() >= set(required) and "patternProperties" not in schema:
        schema.setdefault("additionalProperties", False)
    types = schema.get("type")
    types = types if isinstance(types, list) else [types]
    is_number = "number" in types
    if not (is_number or "integer" in types) or {"enum", "const", "multipleOf"} & schema.keys():
        return
    if not {"minimum", "exclusiveMinimum"} & schema.keys():
        schema["minimum"] = -MAX_NUMBER
    if not {"maximum", "exclusiveMaximum"} & schema.keys():
        schema["maximum"] = MAX_NUMBER
    low = max(schema[name] for name in ("minimum", "exclusiveMinimum") if name in schema)
    high = min(schema[name] for name in ("maximum", "exclusiveMaximum") if name in schema)
    if is_number and high - low >= LEAST_RANGE:
        schema["multipleOf"] = LEAST_STEP


def _bounded(kind: type[int] | type[float]) -> Callable[[str], int | float]:
    def number(text: str) -> int | float:
        value = kind(text)
        if abs(value) > MAX_NUMBER:
            raise _refused(f"the number {text[:20]} is beyond 2^53")
        return value

    return number


def _refused(reason: str) -> UsageError:
    return UsageError(f"json_schema cannot be used: {reason}.", settings=["json_schema"])
