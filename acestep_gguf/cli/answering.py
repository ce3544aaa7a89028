"""Verbs that answer."""

from pathlib import Path
from typing import Annotated

import typer

from acestep_gguf.cli.options import AsJson, BundleFolder, Threads
from acestep_gguf.params import CACHE_TYPES, FLASH_ATTENTION


def run(
    bundle: BundleFolder,
    question: Annotated[str | None, typer.Argument(help="By default read from standard input.")] = None,
    *,
    image: Annotated[list[Path] | None, typer.Option(help="Picture, may be repeated.")] = None,
    quant: Annotated[
        str | None, typer.Option("-q", "--quant", help="Decoder; by default the bundle's default.")
    ] = None,
    as_json: AsJson = False,
    n_predict: Annotated[int, typer.Option("-n", "--n-predict", help="Tokens of the answer at most.")] = 512,
    temp: Annotated[float, typer.Option("--temp", help="0 always takes the most probable token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw from so many tokens; 0: from all.")] = 40,
    top_p: Annotated[float, typer.Option(help="Draw from tokens of this probability together.")] = 0.95,
    min_p: Annotated[float, typer.Option(help="Least probability, relative to the most probable.")] = 0.05,
    seed: Annotated[int | None, typer.Option("-s", "--seed", help="Of the draw. Default: random.")] = None,
    repeat_penalty: Annotated[float, typer.Option(help="Against repetition; 1: off.")] = 1.0,
    ctx_size: Annotated[
        int | None,
        typer.Option("-c", "--ctx-size", help="Tokens of prompt and answer; by default up to 8192."),
    ] = None,
    threads: Threads = None,
    batch_size: Annotated[int, typer.Option("-b", "--batch-size", help="As in llama.cpp.")] = 2048,
    ubatch_size: Annotated[int, typer.Option("-ub", "--ubatch-size", help="As in llama.cpp.")] = 512,
    n_gpu_layers: Annotated[
        int, typer.Option("-ngl", "--n-gpu-layers", help="Layers on a GPU; -1: all.")
    ] = 0,
    cache_type_k: Annotated[
        str, typer.Option("-ctk", "--cache-type-k", help=f"Type of the K cache: {', '.join(CACHE_TYPES)}.")
    ] = "f16",
    cache_type_v: Annotated[
        str, typer.Option("-ctv", "--cache-type-v", help="Type of the V cache, the same.")
    ] = "f16",
    flash_attn: Annotated[
        str, typer.Option("-fa", "--flash-attn", help=f"Flash attention: {', '.join(FLASH_ATTENTION)}.")
    ] = "auto",
    system_prompt: Annotated[
        str | None,
        typer.Option("-sys", "--system-prompt", help="What to tell the model before the question."),
    ] = None,
) -> None:
    """Answer a question about pictures."""
    from acestep_gguf.verbs.run import run as run_verb

    run_verb(
        bundle,
        question,
        image or [],
        system_prompt=system_prompt,
        as_json=as_json,
        engine_options={
            "quant": quant,
            "n_ctx": ctx_size,
            "n_threads": threads,
            "n_batch": batch_size,
            "n_ubatch": ubatch_size,
            "n_gpu_layers": n_gpu_layers,
            "type_k": cache_type_k,
            "type_v": cache_type_v,
            "flash_attn": flash_attn,
        },
        answer_options={
            "max_tokens": n_predict,
            "temperature": temp,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "seed": seed,
            "repeat_penalty": repeat_penalty,
        },
    )
