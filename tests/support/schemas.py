"""Schemas that a bounded answer can follow, and whether it did."""

import json
from typing import Any

from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from acestep_gguf.errors import UsageError
from acestep_gguf.options import AnswerOptions

Schema = dict[str, Any]

NAMES = st.text(min_size=0, max_size=6)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-1000, 1000)
    | st.sampled_from([0.5, -2.25, 1e6])
    | st.text(max_size=6)
)


@st.composite
def strings(draw: st.DrawFn) -> Schema:
    shape = draw(st.sampled_from(["lengths", "pattern", "format"]))
    if shape == "pattern":
        return {"type": "string", "pattern": draw(st.sampled_from(PATTERNS))}
    if shape == "format":
        return {"type": "string", "format": draw(st.sampled_from(["date", "time", "uuid", "ipv4"]))}
    least = draw(st.integers(0, 6))
    return {"type": "string", "minLength": least, "maxLength": least + draw(st.integers(0, 12))}


PATTERNS = (r"^\d{1,3}$", r"^[a-zé]{2,5}$", r"^(red|blue|\w{1,4})$", r"^[^\"]{0,4}$", r"^a?b{0,3}\\?$")


@st.composite
def numbers(draw: st.DrawFn) -> Schema:
    schema: Schema = {"type": draw(st.sampled_from(["integer", "number"]))}
    if draw(st.booleans()):
        low = draw(st.integers(-(10**6), 10**6))
        schema[draw(st.sampled_from(["minimum", "exclusiveMinimum"]))] = low
        if draw(st.booleans()):
            high = low + draw(st.integers(2, 10**4))
            schema[draw(st.sampled_from(["maximum", "exclusiveMaximum"]))] = high
    return schema


@st.composite
def arrays(draw: st.DrawFn, items: st.SearchStrategy[Schema]) -> Schema:
    least = draw(st.integers(0, 2))
    schema: Schema = {"type": "array", "items": draw(items), "minItems": least}
    schema["maxItems"] = least + draw(st.integers(0, 2))
    if draw(st.booleans()):
        schema["prefixItems"] = draw(st.lists(items, max_size=2))
    return schema


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[Schema]) -> Schema:
    properties = draw(st.dictionaries(NAMES, values, max_size=4))
    required = [name for name in properties if draw(st.booleans())]
    schema: Schema = {"type": "object", "properties": properties, "required": required}
    if draw(st.booleans()):
        schema["additionalProperties"] = False
    if draw(st.booleans()):
        schema["title"] = draw(NAMES)
    return schema


def schemas() -> st.SearchStrategy[Schema]:
    """Bounded strings, numbers and arrays, enums, constants, nesting, optional fields, alternatives."""
    simple: st.SearchStrategy[Any] = (
        st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["integer", "null"]}])
        | strings()
        | numbers()
        | st.lists(SCALARS, min_size=1, max_size=4).map(lambda values: {"enum": values})
        | SCALARS.map(lambda value: {"const": value})
    )
    nested: st.SearchStrategy[Any] = st.recursive(
        simple,
        lambda inner: (
            arrays(inner)
            | objects(inner)
            | st.lists(inner, min_size=1, max_size=3).map(lambda several: {"anyOf": several})
            | objects(inner).map(lambda one: {"$defs": {"a/b": one}, "$ref": "#/$defs/a~1b"})
        ),
        max_leaves=6,
    )
    return nested.map(with_references_at_the_top).filter(is_taken)


def is_taken(schema: Schema) -> bool:
    """Whether it is none of the few that are refused for the sake of llguidance: classes beside a quote."""
    try:
        AnswerOptions(json_schema=schema)
    except UsageError as error:
        assert "goes with no" in str(error)  # noqa: PT017 (any other refusal is a failure)
        return False
    return True


def with_references_at_the_top(schema: Schema) -> Schema:
    """References lead from the root, so definitions of parts move there."""
    definitions: dict[str, Schema] = {}

    def moved(part: Any) -> Any:
        if isinstance(part, list):
            return [moved(one) for one in part]
        if not isinstance(part, dict):
            return part
        if isinstance(part.get("$defs"), dict) and "$ref" in part:
            (one,) = part["$defs"].values()
            name = f"part {len(definitions)}/~"
            definitions[name] = {}
            definitions[name] = moved(one)
            return {"$ref": "#/$defs/" + name.replace("~", "~0").replace("/", "~1").replace(" ", "%20")}
        return {key: moved(value) if key not in {"const", "enum"} else value for key, value in part.items()}

    schema = moved(schema)
    return {**schema, "$defs": definitions} if definitions else schema


def follows(text: str, schema: Schema) -> bool:
    """Whether ``text`` is JSON, and valid."""
    return bool(Draft202012Validator(schema).is_valid(json.loads(text)))
