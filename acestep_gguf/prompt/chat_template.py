"""Renders a checkpoint's chat template, which is code from a stranger: sandboxed, and on a budget.

A template sees what transformers gives it (transformers.utils.chat_template_utils), and may use what
published templates use (template_sandbox). What it does is paid for (template_budget), so that it can neither
hang nor fill the memory.
"""

import warnings
from collections.abc import Mapping, Sequence
from sys import getsizeof
from typing import Any, Final

from jinja2.exceptions import SecurityError

from acestep_gguf.errors import PromptError, TemplateLimitError
from acestep_gguf.prompt.template_budget import LimitError
from acestep_gguf.prompt.template_sandbox import Sandbox

MAX_TEMPLATE_CHARS: Final = 2**17

Messages = Sequence[Mapping[str, Any]]


class ChatTemplate:
    """A compiled template.

    Raises:
        PromptError: it is too long, not valid Jinja, or uses what no chat template needs.
    """

    def __init__(self, source: str, template_tokens: Mapping[str, str]) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise PromptError(
                f"the chat template has {len(source)} characters: at most {MAX_TEMPLATE_CHARS} are read."
            )
        self._tokens = dict(template_tokens)
        self._sandbox = Sandbox()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python warns of code like 1[0]
                self._template = self._sandbox.from_string(source)
        except SecurityError as error:
            raise PromptError(f"the chat template cannot be trusted: {_one_line(error)}.") from error
        except Exception as error:  # a stranger's code can make Jinja and Python raise anything
            raise PromptError(f"the chat template is not valid: {_one_line(error)}.") from error

    def render(self, messages: Messages) -> str:
        """The text of ``messages`` (plain dicts, lists and strings), and the beginning of the answer.

        Raises:
            TemplateLimitError: the template does more than it may.
            PromptError: the template refuses the messages, or fails.
        """
        self._sandbox.budget.renew()
        variables = {**self._tokens, "messages": messages, "add_generation_prompt": True}
        chunks: list[str] = []
        try:
            for chunk in self._template.generate(variables):
                self._sandbox.budget.spend(getsizeof(chunk))
                chunks.append(chunk)
        except (LimitError, RecursionError, MemoryError) as error:
            raise TemplateLimitError(
                f"the chat template was stopped ({_one_line(error)}): give shorter messages or another model."
            ) from error
        except Exception as error:  # a stranger's code can raise anything
            raise PromptError(
                f"the chat template does not take these messages: {_one_line(error)}."
            ) from error
        return "".join(chunks)


def _one_line(error: Exception) -> str:
    return " ".join(str(error)[:2000].split())[:500].rstrip(".") or type(error).__name__
