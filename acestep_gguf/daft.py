"""Answers about pictures in Daft: a function of columns (docs/scale.md)."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Final, cast

import daft
import pyarrow
from daft import DataType, Expression, Series

from acestep_gguf.batch.blocks import MANY, PROMPT, BlockAnswerer, answer_types
from acestep_gguf.options import AnswerOptions, EngineOptions

IMAGE: Final = "image"


def answering(
    bundle: str | os.PathLike[str],
    *,
    prompt: str | None = None,
    system_prompt: str | None = None,
    options: AnswerOptions | None = None,
    engine: EngineOptions = MANY,
    workers: int = 1,
    cpus: int | None = None,
    rows_at_once: int = 32,
) -> Callable[..., Expression]:
    """A function of a column of pictures, and if they have their own, one of questions; for ``select``.

    It gives the columns of ``batch`` but for ``id``, and of a JSON Schema the properties. What pictures and
    the other arguments are, and what is raised, is as in ``BlockAnswerer``.

    Args:
        workers: processes, each of which loads the bundle once.
        cpus: of each of them, as Daft counts, and threads that it computes with; by default ``engine``'s.
        rows_at_once: that a worker is given.
    """
    fields = {name: DataType.from_arrow_type(kind) for name, kind in answer_types(options).items()}
    threads = engine.n_threads if engine.n_threads is not None else cpus

    @daft.cls(cpus=cpus, max_concurrency=workers, use_process=workers > 1)
    class Answering:
        def __init__(self) -> None:
            self._answerer = BlockAnswerer(
                bundle,
                prompt=prompt,
                image=IMAGE,
                system_prompt=system_prompt,
                options=options,
                engine=replace(engine, n_threads=threads),
            )

        @daft.method.batch(return_dtype=DataType.struct(fields), unnest=True, batch_size=rows_at_once)
        def __call__(self, image: Series, prompt: Series | None = None) -> Series:
            block = {IMAGE: image.to_arrow()}
            if prompt is not None:
                block[PROMPT] = prompt.to_arrow()
            answers = self._answerer.answer(pyarrow.table(block)).select(list(fields))
            return Series.from_arrow(answers.to_struct_array().combine_chunks())

    return cast("Callable[..., Expression]", Answering())  # Daft calls it with columns
