"""Options that belong together and that several verbs take, and how a verb takes them as one parameter."""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from acestep_gguf.cli.options import Threads, TowerPrecision
from acestep_gguf.llama.params import CACHE_TYPES, FLASH_ATTENTION


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a bundle is loaded; the fields are named like the arguments of ``AceStep``."""

    quant: Annotated[
        str | None, typer.Option("-q", "--quant", help="Decoder; by default the bundle's default.")
    ] = None
    vision: TowerPrecision = None
    n_ctx: Annotated[
        int | None,
        typer.Option("-c", "--ctx-size", help="Tokens of prompt and answer; by default up to 8192."),
    ] = None
    n_threads: Threads = None
    n_threads_batch: Annotated[
        int | None, typer.Option("-tb", "--threads-batch", help="Threads that read the prompt.")
    ] = None
    use_extra_bufts: Annotated[
        bool | None,
        typer.Option("--repack/--no-repack", " /-nr", help="Repack weights for the CPU while loading."),
    ] = None
    n_batch: Annotated[int | None, typer.Option("-b", "--batch-size", help="As in llama.cpp.")] = None
    n_ubatch: Annotated[int | None, typer.Option("-ub", "--ubatch-size", help="As in llama.cpp.")] = None
    n_gpu_layers: Annotated[
        int | None,
        typer.Option("-ngl", "--n-gpu-layers", help="Layers on GPUs, -1: all. Default: what fits."),
    ] = None
    offload_kqv: Annotated[
        bool | None, typer.Option("--kv-offload/--no-kv-offload", help="KV cache on GPUs, too, or in RAM.")
    ] = None
    type_k: Annotated[
        str | None,
        typer.Option("-ctk", "--cache-type-k", help=f"Type of the K cache: {', '.join(CACHE_TYPES)}."),
    ] = None
    type_v: Annotated[
        str | None, typer.Option("-ctv", "--cache-type-v", help="Type of the V cache, the same.")
    ] = None
    use_mmap: Annotated[
        bool | None, typer.Option("--mmap/--no-mmap", help="Map the weights' file, or read it into memory.")
    ] = None
    use_mlock: Annotated[
        bool | None, typer.Option("--mlock", help="Keep the weights from being paged out.")
    ] = None
    allow_paging: Annotated[
        bool,
        typer.Option("--allow-paging", help="Run even if weights do not fit and are read again and again."),
    ] = False
    flash_attn: Annotated[
        str | None,
        typer.Option("-fa", "--flash-attn", help=f"Flash attention: {', '.join(FLASH_ATTENTION)}."),
    ] = None
    image_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of a picture at most: those that say most of it. By default all."),
    ] = None
    spec_type: Annotated[
        str, typer.Option(help="Guess ahead what followed the last tokens before: ngram-simple. Or none.")
    ] = "none"
    draft: Annotated[
        Path | None,
        typer.Option("--draft", "-md", "--model-draft", help="Bundle of a smaller model that guesses ahead."),
    ] = None
    draft_max: Annotated[
        int, typer.Option("--draft-max", "--spec-draft-n-max", help="Tokens to guess at a time at most.")
    ] = 15
    cache: Annotated[
        bool,
        typer.Option("--cache/--no-cache", help="Keep what was computed of pictures, see `cache info`."),
    ] = True


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How an answer is written; the fields are named like the arguments of ``AceStep.generate``."""

    max_tokens: Annotated[int, typer.Option("-n", "--n-predict", help="Tokens of the answer at most.")] = 512
    temperature: Annotated[float, typer.Option("--temp", help="0 always takes the most probable token.")] = (
        0.0
    )
    top_k: Annotated[int, typer.Option(help="Draw from so many tokens; 0: from all.")] = 40
    top_p: Annotated[float, typer.Option(help="Draw from tokens of this probability together.")] = 0.95
    min_p: Annotated[float, typer.Option(help="Least probability, relative to the most probable.")] = 0.05
    seed: Annotated[int | None, typer.Option("-s", "--seed", help="Of the draw. Default: random.")] = None
    repeat_penalty: Annotated[float, typer.Option(help="Against repetition; 1: off.")] = 1.0


def takes_groups(verb: Callable[..., None]) -> Callable[..., None]:
    """Let typer see the fields of each parameter that is a group (a dataclass) as options of ``verb``.

    A group's options stand in --help where the group stands among the parameters.
    """
    groups: dict[str, type[Any]] = {}
    parameters: list[Parameter] = []
    for parameter in signature(verb, eval_str=True).parameters.values():
        if is_dataclass(group := parameter.annotation) and isinstance(group, type):
            groups[parameter.name] = group
            parameters += [
                Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
                for field in fields(group)
            ]
        else:
            parameters.append(parameter)

    def with_groups(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        verb(**values)

    with_groups.__name__, with_groups.__doc__ = verb.__name__, verb.__doc__
    with_groups.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(with_groups)["__signature__"] = Signature(parameters)  # the attribute that inspect reads
    return with_groups
