"""Fields of OpenAI's requests that this server does not act upon: ignored, or refused with 400.

docs/server.md prints this table. A field that is in no table is refused, too: who sends it counts on it.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

# Values that ask for nothing, beside those that are empty or 0: with them, a field may always be sent.
NOTHING: Final = ("none", "auto", "disabled", "default", ["text"])


class Unsupported(NamedTuple):
    """What becomes of a field, and why."""

    rule: Literal["ignored", "refused"]
    why: str


UNSUPPORTED: Final[Mapping[str, Unsupported]] = {
    **dict.fromkeys(
        ("user", "safety_identifier", "metadata", "name"),
        Unsupported("ignored", "nothing is told apart by it, nothing is stored"),
    ),
    **dict.fromkeys(
        ("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "service_tier"),
        Unsupported("ignored", "what was read before is found again by itself"),
    ),
    "store": Unsupported("ignored", "nothing is stored"),
    "prediction": Unsupported("ignored", "it would change the speed only"),
    **dict.fromkeys(
        ("reasoning", "reasoning_effort", "verbosity"),
        Unsupported("ignored", "the models have no such settings"),
    ),
    **dict.fromkeys(
        ("parallel_tool_calls", "max_tool_calls", "include_obfuscation", "annotations", "refusal", "phase"),
        Unsupported("ignored", "it means nothing without what is refused"),
    ),
    **dict.fromkeys(
        ("tools", "tool_choice", "tool_calls", "functions", "function_call", "web_search_options"),
        Unsupported("refused", "there are no tools: ask for JSON by a schema (response_format)"),
    ),
    "logit_bias": Unsupported("refused", "ask for JSON by a schema, if it is to steer the answer"),
    **dict.fromkeys(
        ("frequency_penalty", "presence_penalty"),
        Unsupported("refused", "use repeat_penalty"),
    ),
    **dict.fromkeys(("audio", "modalities"), Unsupported("refused", "answers are text")),
    **dict.fromkeys(
        ("previous_response_id", "conversation", "prompt", "background", "item_reference"),
        Unsupported("refused", "nothing is stored: send the whole conversation"),
    ),
    "truncation": Unsupported("refused", "a prompt is read whole, or not at all"),
    "grammar": Unsupported("refused", "ask by a JSON Schema (response_format)"),
    "moderation": Unsupported("refused", "there is none"),
}


def check_unsupported(extra: Mapping[str, Any]) -> None:
    """Let through what is ignored, or asks for nothing.

    Raises:
        ValueError: anything else.
    """
    for name, value in extra.items():
        shown = name[:40] if name.isprintable() else "a field"
        if name not in UNSUPPORTED:
            raise ValueError(f"{shown} is not known here: leave it out")
        rule, why = UNSUPPORTED[name]
        if rule == "refused" and value and value not in NOTHING:
            raise ValueError(f"{shown} is not supported: {why}")
