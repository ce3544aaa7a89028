"""Answers about pictures in Ray Data: a class for ``Dataset.map_batches`` (docs/scale.md).

answers = pictures.map_batches(
    AnswerPictures,
    fn_constructor_args=["demo-bundle"],
    fn_constructor_kwargs={"prompt": "What is this?"},
    batch_format="pyarrow",
    batch_size=32,
    num_cpus=4,
    compute=ray.data.ActorPoolStrategy(size=8),
)
"""

import os
from dataclasses import replace
from typing import Any

import pyarrow
import ray

from acestep_gguf.batch.blocks import MANY, BlockAnswerer
from acestep_gguf.options import EngineOptions


class AnswerPictures:
    """Each actor loads the bundle once, and computes with as many threads as Ray gave it CPUs.

    Arguments, columns and errors are those of ``BlockAnswerer``.
    """

    def __init__(
        self, bundle: str | os.PathLike[str], *, engine: EngineOptions = MANY, **arguments: Any
    ) -> None:
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        if engine.n_threads is None:
            engine = replace(engine, n_threads=max(1, int(cpus)))
        self._answerer = BlockAnswerer(bundle, engine=engine, **arguments)

    def __call__(self, block: pyarrow.Table) -> pyarrow.Table:
        """The table of answers."""
        return self._answerer.answer(block)
