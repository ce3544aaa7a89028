import json
import os
from pathlib import Path
from typing import Any

import pytest

from acestep_gguf.errors import UsageError
from acestep_gguf.grammar.json_schema import MAX_DEPTH, MAX_SUBSCHEMAS, checked, read_schema
from acestep_gguf.options import AnswerOptions

PAIR = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"$ref": "https://example.com/schema.json"}, "leads out of it"),
        ({"$ref": "file:///etc/passwd"}, "leads out of it"),
        ({"$ref": "other.json#/a"}, "leads out of it"),
        ({"$ref": 5}, "$ref at # is 5"),
        ({"$ref": "#/$defs/a"}, "leads nowhere"),
        ({"$ref": "#/enum/7", "enum": [1]}, "leads nowhere"),
        ({"$ref": "#"}, "itself"),
        ({"properties": {"a": {"$ref": "#"}}}, "itself"),
        ({"$defs": {"t": {"items": {"$ref": "#/$defs/t"}}}, "$ref": "#/$defs/t"}, "itself"),
        (
            {
                "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"items": {"$ref": "#/$defs/a"}}},
                "$ref": "#/$defs/a",
            },
            "itself",
        ),
        ({"type": "array", "uniqueItems": True}, "uniqueItems at # "),
        ({"properties": {"a": {"not": {}}}}, "not at #/properties/a "),
        ({"anyOf": [{"if": {}, "then": {}}]}, "if, then at #/anyOf/0 "),
        ({"type": "string", "maxLenght": 3}, "maxLenght"),
        ({"type": "string", "nullable": True}, "nullable"),
        ({"properties": {"a": {"$id": "b"}}}, "id at"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"type": "string", "pattern": "("}, "unclosed"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "pattern": "^(a{1000}){1000}$"}, "pattern at # is too large"),
        ({"type": "string", "pattern": "ab" * 6_000}, "pattern at # is too large"),
        ({"type": "string", "pattern": "^((a{30}b?){30,}|c){20}$"}, "pattern at # is too large"),
        ({"type": "object", "patternProperties": {"(a{999}){99}": {}}}, "pattern at # is too large"),
        ({"anyOf": [{"type": "string", "pattern": '^[^"]$'}, {"const": ['a"b']}]}, "goes with no"),
        ({"patternProperties": {"^\\W$": {"enum": ["a\\b"]}}}, "goes with no"),
        ({"type": "string", "pattern": '^"é"$'}, "goes with no"),
        ({"type": "string", "pattern": '^[é"]$'}, "goes with no"),
        ({"type": "string", "pattern": "^\\\\[^x]$"}, "goes with no"),
        ({"type": "string", "pattern": "^[^x]\\\\$"}, "goes with no"),
        ({"type": "string", "format": "sonnet"}, "Unknown format"),
        ({"type": "strin"}, "Invalid type"),
        ({"type": 5}, "type at # is 5"),
        ({"type": [{}]}, "type must be"),
        ({"type": "integer", "minimum": None}, "minimum at # is None"),
        ({"items": {"type": "integer", "exclusiveMinimum": False}}, "exclusiveMinimum at #/items is False"),
        ({"type": "integer", "minimum": "a"}, "minimum"),
        ({"type": "integer", "minimum": 10**400}, "beyond 2^53"),
        ({"const": -(2**63)}, "the number -9223372036854775808 is beyond 2^53"),
        ({"enum": [2**64 - 1]}, "beyond 2^53"),
        ({"type": "number", "maximum": 1e300}, "beyond 2^53"),
        ({"type": "integer", "minimum": 2**53 - 1, "exclusiveMinimum": 2**53 - 1}, "Unsatisfiable"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "Unsatisfiable"),
        ({"type": "number", "multipleOf": 0}, "multiple"),
        ({"enum": []}, "Unsatisfiable"),
        ({"enum": [str(number) for number in range(100_000)]}, "too big"),
        ({"const": float("nan")}, "no JSON"),
        ({"const": {1, 2}}, "no JSON"),
        ({"properties": []}, "properties"),
        ({"properties": {"a": 5}}, "#/properties/a is int"),
        ({"items": [{}]}, "items at # is [{}]"),
        ({"required": "a"}, "required at # is 'a'"),
        ({"anyOf": [{"type": "null", "maxItems": {}}, {"type": "boolean"}]}, "maxItems at #/anyOf/0 is {}"),
        ({"type": "string", "pattern": "^[[:alpha:]]$"}, "a class"),
        ({"type": "string", "pattern": "[a&&b]"}, "a class"),
        ({"required": [["a"]]}, "required"),
        ({"anyOf": {}}, "anyOf"),
        (nested(MAX_DEPTH + 1), "nested deeper"),
        (nested(100_000), "recursion"),
        ({"properties": {f"a{number}": {} for number in range(MAX_SUBSCHEMAS)}}, "parts"),
        (
            {
                "type": ["object"],
                "properties": PAIR["properties"],
                "required": ["b"],
                "additionalProperties": False,
            },
            "'b'",
        ),
    ],
)
def test_what_cannot_be_had_is_refused_in_a_line(schema: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError) as refusal:
        AnswerOptions(json_schema=schema)
    assert why in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400
    assert refusal.value.settings == ("json_schema",)


def test_references_that_double_do_not_blow_up() -> None:
    definitions: dict[str, Any] = {
        f"a{n}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/a{n + 1}"}] * 2, "minItems": 2}
        for n in range(20)
    }
    definitions["a20"] = {"const": 1}
    grammar = AnswerOptions(json_schema={"$defs": definitions, "$ref": "#/$defs/a0"}).constraint
    assert grammar is not None
    assert len(grammar.text) < 10_000


def test_a_pattern_is_as_large_as_it_is_written_out() -> None:
    address = ":".join(["[0-9a-f]{1,4}"] * 8)
    AnswerOptions(json_schema={"type": "string", "pattern": f"^({address}|(\\d{{1,3}}\\.){{3}}\\d{{1,3}})$"})
    AnswerOptions(json_schema={"type": "string", "pattern": r"^(\w{20} ){100}\{999\}$"})


def test_annotations_are_passed_over() -> None:
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://example.com/a",
        **PAIR,
    }
    schema |= {"title": "t", "description": "d", "default": {}, "examples": [{}], "$comment": "c"}
    assert AnswerOptions(json_schema=schema).constraint is not None


def test_where_a_schema_comes_from(tmp_path: Path) -> None:
    class Model:
        @classmethod
        def model_json_schema(cls) -> dict[str, Any]:
            return PAIR

    path = tmp_path / "schema.json"
    path.write_text(json.dumps(PAIR))
    for source in (PAIR, json.dumps(PAIR), f" \n{json.dumps(PAIR)}", path, str(path), Model):
        assert read_schema(source) == PAIR
    path.unlink()
    for wrong in (path, str(path), tmp_path, "a\0b", b"{}", 5, [PAIR], object):
        with pytest.raises(UsageError, match="json_schema"):
            read_schema(wrong)
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="json_schema"):
        read_schema(path)
    path.write_bytes(b" " * 2**21)
    with pytest.raises(UsageError, match="longer than"):
        read_schema(path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="not a file"):
        read_schema(pipe)


def test_json_that_is_none() -> None:
    for text in ("{", '{"a":}', "{" * 10**6, '{"const":' + "1" * 5000 + "}"):
        with pytest.raises(UsageError, match="json_schema"):
            AnswerOptions(json_schema=text)


def narrowed(schema: dict[str, Any]) -> dict[str, Any]:
    before = json.dumps(schema)
    found = json.loads(checked(schema).text)
    assert json.dumps(schema) == before
    return dict(found)


def test_only_named_fields_are_written() -> None:
    assert narrowed({"items": PAIR})["items"]["additionalProperties"] is False
    for kept in ({**PAIR, "additionalProperties": {}}, {"type": "object"}, {**PAIR, "required": ["b"]}):
        assert narrowed(kept) == kept
    # Each of two schemas that hold together would forbid the other's fields.
    both = {"allOf": [PAIR, {"properties": {"b": {"type": "null"}}}]}
    assert narrowed(both) == both


def test_numbers_end() -> None:
    whole = {"minimum": -(2**53) + 1, "maximum": 2**53 - 1}
    broken = {**whole, "multipleOf": 1e-9}
    assert narrowed({"type": "integer"}) == {"type": "integer", **whole}
    assert narrowed({"type": ["null", "number"]}) == {"type": ["null", "number"], **broken}
    confidence = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
    assert narrowed(confidence) == {**confidence, "multipleOf": 1e-9}
    for kept in (
        {"type": "number", "minimum": 1e-12, "maximum": 2e-12},
        {"type": "number", "multipleOf": 0.5},
        {"type": "integer", "enum": [2**50]},
    ):
        assert narrowed(kept) == kept
