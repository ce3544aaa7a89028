"""The plan for a bundle on a machine: the first of its decoders and contexts that fits, or a refusal."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from acestep_gguf.bundle.names import DecoderFtype
from acestep_gguf.errors import MemoryShortageError, UsageError
from acestep_gguf.plan.bundle_model import BundleModel
from acestep_gguf.plan.machine import Machine
from acestep_gguf.plan.memory import Memory
from acestep_gguf.plan.search import SMALLER_CACHE_TYPES, SMALLER_N_UBATCH, Defaults, Fit, Search, Task
from acestep_gguf.plan.settings import Settings, Wish
from acestep_gguf.plan.sizes import show_size
from acestep_gguf.plan.speed import Rates, Speed, expected_speed

DEFAULT_N_CTX: Final = 8192
LEAST_N_CTX: Final = 1024
N_CTX_STEP: Final = 256  # llama.cpp rounds up to it
ANSWER_TOKENS: Final = 512  # beside the pictures, a context has room for so many at least
N_ALTERNATIVES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Settings that fit, what they take, what was given up for that, and what limits it.

    ``paged`` are bytes of weights that do not fit and are read from disk for every token.
    """

    settings: Settings
    memory: Memory
    machine: Machine
    speed: Speed
    given_up: tuple[str, ...]
    limit: str
    paged: int


def make_plan(
    bundle: BundleModel,
    machine: Machine,
    wish: Wish | None = None,
    *,
    rates: Rates | None = None,
    defaults: Defaults | None = None,
) -> Plan:
    """The best plan that fits ``machine``; without wishes, rates or defaults, everything is open.

    Raises:
        MemoryShortageError: none does; the message names the nearest ones that would.
        UsageError: what was set by hand contradicts itself or the model.
        BundleError: a file is missing or damaged.
    """
    task = Task(
        bundle=bundle,
        machine=machine,
        wish=wish or Wish(),
        rates=rates or Rates(),
        defaults=defaults or Defaults(),
    )
    for search in _searches(task):
        if fit := search.fit():
            return _made(search, fit)
    raise MemoryShortageError(_refusal(task))


def _searches(task: Task) -> Iterator[Search]:
    """The wanted decoder, or the default and smaller ones; each with the contexts to try."""
    for quant in task.bundle.quants(task.wish.quant):
        for n_ctx in _contexts(task, quant):
            yield Search(task, quant, n_ctx)


def _contexts(task: Task, quant: DecoderFtype) -> list[int]:
    """The wanted context, or the default and its halves while pictures and an answer fit.

    The default is no larger than what will be needed, where that is known.
    """
    most, wanted = task.bundle.decoder(quant).shape.n_ctx_train, task.wish.n_ctx
    if wanted is not None:
        if not 1 <= wanted <= most:
            raise UsageError(
                f"n_ctx (--ctx-size) is {wanted}: this model was made for {most} tokens at most."
            )
        return [wanted]
    least = task.bundle.image_tokens(task.wish.images) + ANSWER_TOKENS
    power_of_two = 1 << (least - 1).bit_length()
    default = max(DEFAULT_N_CTX, power_of_two)
    if task.wish.n_ctx_needed is not None:
        default = min(default, max(least, -(-task.wish.n_ctx_needed // N_CTX_STEP) * N_CTX_STEP))
    contexts = [min(most, default)]
    while contexts[-1] // 2 >= max(LEAST_N_CTX, least):
        contexts.append(contexts[-1] // 2)
    return contexts


def _made(search: Search, fit: Fit) -> Plan:
    task, settings = search.task, fit.settings
    memory = search.memory(settings)
    n_past = min(settings.n_ctx, task.bundle.image_tokens(task.wish.images) + ANSWER_TOKENS)
    return Plan(
        settings=settings,
        memory=memory,
        machine=task.machine,
        speed=expected_speed(search.work(settings, n_past=n_past, paged=fit.paged), task.rates),
        given_up=fit.given_up,
        limit=_limit(task, settings, memory, fit.paged),
        paged=fit.paged,
    )


def _limit(task: Task, settings: Settings, memory: Memory, paged: int) -> str:
    if paged:
        return f"RAM: {show_size(paged)} of weights are read from disk for every token"
    if task.machine.gpus and settings.n_gpu_layers <= task.bundle.decoder(settings.quant).shape.n_layer:
        return "GPU memory: the other layers stay in RAM, whose bandwidth bounds decoding"
    if task.machine.gpus:
        return "the GPU's bandwidth: all layers are there"
    free = show_size(task.machine.ram - memory.ram)
    return f"RAM's bandwidth in decoding, the CPU in prefill; {free} of RAM stay free"


def _refusal(task: Task) -> str:
    """What is missing at the smallest that was tried, and what would fit."""
    *_, smallest = _searches(task)
    n_ctx, quant = smallest.best.n_ctx, smallest.best.quant
    missing, kind = smallest.shortage()
    if kind == "RAM" and task.machine.limited_by != "memory":
        kind = f"RAM than its {task.machine.limited_by} has left"
    nearest = list(_alternatives(task, n_ctx))[:N_ALTERNATIVES]
    advice = f"{' or '.join(nearest)} fits" if nearest else "free memory, or take a smaller model"
    return f"context {n_ctx} with {quant} needs {show_size(missing)} more {kind}; {advice}."


def _alternatives(task: Task, n_ctx: int) -> Iterator[str]:
    """Options that, in the place of those that were given, make it fit."""
    wish = task.wish

    def fits(**changes: Any) -> bool:
        changed = replace(task, wish=replace(wish, **changes))
        return any(search.fit() is not None for search in _searches(changed))

    steps = (n_ctx - 1) // LEAST_N_CTX
    if most := _largest(steps, lambda n: fits(n_ctx=n * LEAST_N_CTX)):
        yield f"--ctx-size {most * LEAST_N_CTX}"
    if wish.type_k is not None or wish.type_v is not None:
        for smaller in SMALLER_CACHE_TYPES:
            if smaller not in (wish.type_k, wish.type_v) and fits(type_k=smaller, type_v=smaller):
                yield f"--cache-type-k {smaller} --cache-type-v {smaller}"
                break
    if wish.quant is not None:
        for quant in task.bundle.quants(None):
            if fits(quant=quant):
                yield f"--quant {quant}"
                break
    if wish.n_ubatch is not None and fits(n_ubatch=SMALLER_N_UBATCH[-1]):
        yield f"--ubatch-size {SMALLER_N_UBATCH[-1]}"
    if wish.use_mmap is False and fits(use_mmap=None):
        yield "without --no-mmap"
    if wish.n_gpu_layers and fits(n_gpu_layers=None):
        yield "fewer --n-gpu-layers"
    if not wish.allow_paging and fits(allow_paging=True):
        yield "--allow-paging (slow)"


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to ``most`` that fits, if all below it do; 0 if none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
