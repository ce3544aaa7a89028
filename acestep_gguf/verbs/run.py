"""``acestep-gguf run``: one question, one answer."""

import json
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from acestep_gguf.answer import Answer, Chunk
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.errors import PromptError
from acestep_gguf.plan.report import plan_line
from acestep_gguf.prompt.messages import Message, user_message
from acestep_gguf.vision.embeds_file import EmbedsFile

MAX_STDIN_BYTES: Final = 4 * 2**20


def run(
    bundle: Path,
    question: str | None,
    images: Sequence[Path],
    embeds: Sequence[Path],
    *,
    system_prompt: str | None,
    as_json: bool,
    engine_options: dict[str, Any],
    answer_options: dict[str, Any],
) -> None:
    """Answer on stdout, as it is written or as one JSON object; a line of statistics on stderr."""
    question = question if question is not None else read_stdin()
    if not question.strip():
        raise PromptError("the question is empty: give it after the bundle, or on standard input.")
    pictures: list[Path | EmbedsFile] = [*images, *map(EmbedsFile, embeds)]
    messages = _messages(question, pictures, system_prompt)
    end_at_once_on_ctrl_c()
    n_text = len(f"{system_prompt or ''}{question}".encode()) + answer_options["max_tokens"]  # a byte a token
    with AceStep(bundle, pictures=pictures, n_text=n_text, **engine_options) as model:
        if as_json:
            print(json.dumps(asdict(model.generate(messages, **answer_options)), ensure_ascii=False))
            return
        answer = print_chunks(model.stream(messages, **answer_options))
    print(plan_line(model.plan), statistics(answer), sep="\n", file=sys.stderr)


def _messages(question: str, images: Sequence[Path | EmbedsFile], system_prompt: str | None) -> list[Message]:
    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    return [*system, user_message(question, images)]


def read_stdin() -> str:
    """The question on standard input.

    Raises:
        PromptError: there is no standard input, or it is too long or not UTF-8.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise PromptError("there is no question: give it after the bundle, or on standard input.")
    data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if len(data) > MAX_STDIN_BYTES:
        raise PromptError(f"the question on standard input is longer than {MAX_STDIN_BYTES >> 20} MiB.")
    try:
        return data.decode().strip()
    except UnicodeDecodeError as error:
        raise PromptError(f"the question on standard input is not UTF-8 ({error.reason}).") from error


def end_at_once_on_ctrl_c() -> None:
    """Python's own handler would wait for the end of a call of llama.cpp, which can take minutes."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def print_chunks(chunks: Iterable[Chunk]) -> Answer:
    """Print an answer as it is written."""
    for chunk in chunks:
        print(chunk.text, end="", flush=True)
        answer = chunk.answer
    print()
    assert answer is not None  # noqa: S101 (so it is in the last chunk)
    return answer


def statistics(answer: Answer) -> str:
    """Counts, seconds and speeds of an answer, on one line."""
    usage, timings = answer.usage, answer.timings
    of_prompt = f"{usage.image_tokens} of pictures, {usage.cached_tokens} known from before"
    return (
        f"[load {timings.load_s:.2f} s | pictures {timings.image_s:.2f} s | "
        f"prompt {usage.prompt_tokens} tokens ({of_prompt}) {timings.prefill_s:.2f} s, "
        f"{timings.prefill_tokens_per_s:.1f} tokens/s | "
        f"answer {usage.completion_tokens} tokens {timings.decode_s:.2f} s, "
        f"{timings.decode_tokens_per_s:.1f} tokens/s | {answer.finish_reason}]"
    )
