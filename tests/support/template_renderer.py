"""A process with little memory in which strangers' chat templates are rendered, and that can be ended."""

import json
import multiprocessing
import resource
import warnings
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from multiprocessing.connection import Connection
from time import process_time

import psutil
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from acestep_gguf.errors import PromptError
from acestep_gguf.prompt.chat_template import ChatTemplate

MESSAGES = [
    {"role": "system", "content": "be good"},
    {"role": "user", "content": "hi <é>"},
    {"role": "assistant", "content": "😀"},
    {"role": "user", "content": "why?"},
]
MEMORY_BYTES = 256 * 2**20  # twice what a template may make: what it costs beside that is not much
TIMEOUT_S = 120


@dataclass(frozen=True)
class Rendering:
    """What came of a template: a text, and what Jinja alone makes of it, or a ``PromptError``."""

    text: str
    jinjas_text: str
    error: str
    out_of_memory: bool
    cpu_seconds: float


class TemplateRenderer:
    """Renders in a process of its own, started anew when it died."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def render(self, template: str) -> Rendering:
        self._connection.send(template)
        try:
            if self._connection.poll(TIMEOUT_S):
                rendering: Rendering = self._connection.recv()
                return rendering
            end = "does not come to an end"
        except EOFError:
            self._process.join()
            end = f"ends the process with {self._process.exitcode}"
        self.close()
        self._start()
        raise AssertionError(f"{template} {end}")

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()


def _serve(connection: Connection) -> None:
    _render("{{ messages[0].content | upper }}")  # what is loaded by the first rendering does not count
    limit = psutil.Process().memory_info().vms + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    while True:
        connection.send(_render(connection.recv()))


def _render(template: str) -> Rendering:
    start = process_time()
    try:
        text = ChatTemplate(template, {"bos_token": "<s>"}).render(MESSAGES)
    except PromptError as error:
        return Rendering("", "", str(error), isinstance(error.__cause__, MemoryError), process_time() - start)
    return Rendering(text, jinjas_rendering(template), "", False, process_time() - start)


def jinjas_rendering(template: str) -> str:
    """What Jinja makes of a template, as transformers uses it: without bounds."""
    environment = _Jinja(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = environment.from_string(template)
    return compiled.render(messages=MESSAGES, bos_token="<s>", add_generation_prompt=True)


class _Jinja(ImmutableSandboxedEnvironment):
    """One that does not calculate while it compiles, which could be endless where no rendering comes."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)
