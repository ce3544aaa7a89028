"""The plan for a bundle on a machine: the first of its decoders and contexts that fits, or a refusal."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final

from acestep_gguf.bundle.names import DecoderFtype, VisionPrecision
from acestep_gguf.errors import ContextOverflowError, MemoryShortageError, UsageError
from acestep_gguf.options import EngineOptions, TowerProvider
from acestep_gguf.plan.bundle_model import BundleModel
from acestep_gguf.plan.draft import Draft
from acestep_gguf.plan.machine import Machine, reinstall_command
from acestep_gguf.plan.machine_settings import MachineSettings, plain_settings
from acestep_gguf.plan.memory import Memory
from acestep_gguf.plan.search import SMALLER_CACHE_TYPES, SMALLER_N_UBATCH, Fit, Search, Task
from acestep_gguf.plan.settings import FLOAT_CACHE_TYPES, Settings, Workload
from acestep_gguf.plan.speed import Rates, Speed, expected_speed
from acestep_gguf.sizes import show_size

DEFAULT_N_CTX: Final = 8192
LEAST_N_CTX: Final = 1024
N_CTX_STEP: Final = 256  # llama.cpp rounds up to it
ANSWER_TOKENS: Final = 512  # beside the pictures, a context has room for so many at least
N_ALTERNATIVES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Settings that fit, what they take, what was given up for that, and what limits it.

    ``draft`` are the settings of the draft model. ``opening_limit`` is the memory in bytes that opening a
    picture may take; ``paged`` are bytes of weights that do not fit and are read from disk for every token.
    """

    settings: Settings
    draft: Settings | None
    memory: Memory
    machine: Machine
    speed: Speed
    given_up: tuple[str, ...]
    limit: str
    opening_limit: int
    paged: int


def make_plan(
    bundle: BundleModel,
    machine: Machine,
    options: EngineOptions | None = None,
    workload: Workload | None = None,
    *,
    rates: Rates | None = None,
    defaults: MachineSettings | None = None,
    draft: Draft | None = None,
) -> Plan:
    """The best plan that fits ``machine``.

    Args:
        bundle: the model.
        machine: what there is.
        options: what was set by hand, and is kept.
        workload: what will be asked; by default, about one picture.
        rates: how fast memory and processors are, as far as it is known.
        defaults: what suits the machine if there is room; by default llama.cpp's defaults.
        draft: the model that guesses ahead.

    Raises:
        MemoryShortageError: none does; the message names the nearest ones that would.
        UsageError: what was set by hand contradicts itself or the model.
        BundleError: a file is missing or damaged.
    """
    options, workload = options or EngineOptions(), workload or Workload()
    _check_gpu(options, machine)
    if options.vision is not None and bundle.bundle.vision is not None:
        bundle.bundle.vision_file(options.vision)  # one that is not there, even if no picture needs it
    _check_prefill(bundle, options)
    provider = _provider(bundle, machine, options)
    task = Task(
        bundle=bundle,
        machine=machine,
        options=options,
        workload=workload,
        rates=rates or Rates(),
        defaults=defaults or plain_settings(machine.n_threads),
        vision=_vision(bundle, options, provider) if workload.n_encoded else None,
        vision_provider=provider,
        int8_layers=options.prefill != "off" and bundle.int8_layers is not None,
        draft=draft,
    )
    plan = _first_plan(task)
    if options.vision_provider == "auto" and provider != "cpu" and not _is_all_on_gpus(task, plan):
        # Layers that the tower would push out are read for every token.
        vision = _vision(bundle, options, "cpu") if workload.n_encoded else None
        plan = _first_plan(replace(task, vision=vision, vision_provider="cpu"))
    if plan is None:
        raise _refusal(task)
    return plan


def check_pictures_fit(bundle: BundleModel, options: EngineOptions, n_images: int) -> None:
    """Check that the context, by default the longest that the model was made for, holds so many pictures.

    Raises:
        ContextOverflowError: it does not.
    """
    n_ctx = options.n_ctx or bundle.decoder(bundle.quants(options.quant)[0]).shape.n_ctx_train
    n_tokens, n_each = (bundle.image_tokens(n, options) for n in (n_images, 1))
    if n_tokens >= n_ctx:
        raise ContextOverflowError(
            f"{n_tokens} tokens of pictures do not fit into a context of {n_ctx}: ask about "
            f"{(n_ctx - 1) // n_each} at most, or about more with a smaller image_tokens.",
            settings=["image_tokens"],
        )


def _first_plan(task: Task) -> Plan | None:
    return next((_made(search, fit) for search in _searches(task) if (fit := search.fit())), None)


def _is_all_on_gpus(task: Task, plan: Plan | None) -> bool:
    if plan is None:
        return False
    settings = plan.settings
    return settings.n_gpu_layers > task.bundle.decoder(settings.quant).shape.n_layer


def _provider(bundle: BundleModel, machine: Machine, options: EngineOptions) -> TowerProvider:
    """What runs the tower: what was asked for, or what suits the machine and can run what there is."""
    vision = bundle.bundle.vision
    has_float32 = vision is not None and "float32" in vision.files
    if options.vision_provider == "auto":
        return machine.tower_provider if has_float32 and options.vision != "int8" else "cpu"
    if options.vision_provider == "cpu" or vision is None:
        return "cpu"
    if options.vision == "int8":
        raise UsageError(
            "the int8 tower is made for CPUs: leave vision or vision_provider out.",
            settings=["vision", "vision_provider"],
        )
    if not has_float32:
        raise UsageError(
            f"vision_provider {options.vision_provider} needs the float32 tower, which this bundle does not "
            "have: `convert` with vision=float32.",
            settings=["vision_provider", "vision"],
        )
    return options.vision_provider


def _vision(bundle: BundleModel, options: EngineOptions, provider: TowerProvider) -> VisionPrecision | None:
    """The tower's precision. The int8 one is made for CPUs: OpenVINO ends the process on it."""
    return bundle.vision(options.vision if provider == "cpu" else "float32")


def _check_gpu(options: EngineOptions, machine: Machine) -> None:
    if options.n_gpu_layers and not machine.gpus:
        seen = machine.unused_gpu
        instead = f", or install llama.cpp for it: {reinstall_command(seen)}" if seen else ""
        raise UsageError(
            f"n_gpu_layers is {options.n_gpu_layers}, but llama.cpp finds no GPU: leave it out{instead}.",
            settings=["n_gpu_layers"],
        )


def _check_prefill(bundle: BundleModel, options: EngineOptions) -> None:
    if options.prefill != "int8":
        return
    types = [kind for kind in (options.type_k, options.type_v) if kind not in (None, *FLOAT_CACHE_TYPES)]
    if bundle.int8_layers is None:
        raise UsageError(
            "prefill is int8, but this bundle has no int8 layers: `convert` with prefill adds them.",
            settings=["prefill"],
        )
    if types:
        raise UsageError(
            f"prefill int8 writes no {types[0]} keys and values: choose from {', '.join(FLOAT_CACHE_TYPES)}.",
            settings=["prefill"],
        )


def _searches(task: Task) -> Iterator[Search]:
    """The wanted decoder, or the default and smaller ones; each with the contexts to try."""
    for quant in task.bundle.quants(task.options.quant):
        for n_ctx in _contexts(task, quant):
            yield Search(task, quant, n_ctx)


def _contexts(task: Task, quant: DecoderFtype) -> list[int]:
    """The wanted context; or what will be needed, or the default, and halves of it while pictures fit."""
    most, wanted = task.bundle.decoder(quant).shape.n_ctx_train, task.options.n_ctx
    if wanted is not None:
        if not isinstance(wanted, int) or not 1 <= wanted <= most:
            raise UsageError(
                f"n_ctx is {wanted!r}: this model was made for 1 to {most} tokens.", settings=["n_ctx"]
            )
        return [wanted]
    least = task.n_image_tokens + ANSWER_TOKENS
    if task.workload.n_text is None:
        needed = max(DEFAULT_N_CTX, 1 << (least - 1).bit_length())
    else:
        needed = max(least, -(-(task.n_image_tokens + task.workload.n_text) // N_CTX_STEP) * N_CTX_STEP)
    contexts = [min(most, needed)]
    while contexts[-1] // 2 >= max(LEAST_N_CTX, least):
        contexts.append(contexts[-1] // 2)
    return contexts


def _made(search: Search, fit: Fit) -> Plan:
    task, settings = search.task, fit.settings
    memory = search.memory(settings)
    n_past = min(settings.n_ctx, task.n_image_tokens + ANSWER_TOKENS)
    free = max(0, task.machine.ram - memory.ram)
    return Plan(
        settings=settings,
        draft=None if task.draft is None else task.draft.settings(settings),
        memory=memory,
        machine=task.machine,
        speed=expected_speed(search.work(settings, n_past=n_past, paged=fit.paged), task.rates),
        given_up=(*_smaller(task, settings), *fit.given_up),
        limit=_limit(task, settings, memory, fit.paged),
        opening_limit=max(task.workload.opening_ahead, task.workload.opening_later + free),
        paged=fit.paged,
    )


def _smaller(task: Task, settings: Settings) -> Iterator[str]:
    """What is smaller than it was wanted to be."""
    quant, n_ctx = task.bundle.quants(task.options.quant)[0], _contexts(task, settings.quant)[0]
    if settings.quant != quant:
        yield f"{settings.quant} in the place of {quant}"
    if settings.n_ctx < n_ctx:
        yield f"context {settings.n_ctx} in the place of {n_ctx}"


def _limit(task: Task, settings: Settings, memory: Memory, paged: int) -> str:
    if paged:
        return f"RAM: {show_size(paged)} of weights are read from disk for every token"
    is_all = settings.n_gpu_layers > task.bundle.decoder(settings.quant).shape.n_layer
    if task.machine.n_remote and settings.n_gpu_layers:
        where = "all layers are there" if is_all else "the other layers stay in RAM"
        return f"the servers' bandwidth and the network's delay: {where}"
    has_gpu = task.machine.n_remote < len(task.machine.gpus)
    if has_gpu and not is_all:
        return "GPU memory: the other layers stay in RAM, whose bandwidth bounds decoding"
    if has_gpu:
        return "the GPU's bandwidth: all layers are there"
    free = show_size(task.machine.ram - memory.ram)
    return f"RAM's bandwidth in decoding, the CPU in prefill; {free} of RAM stay free"


def _refusal(task: Task) -> MemoryShortageError:
    """What is missing at the smallest that was tried, and what would fit."""
    *_, smallest = _searches(task)
    n_ctx, quant = smallest.best.n_ctx, smallest.best.quant
    missing, kind = smallest.shortage()
    if kind == "RAM" and task.machine.limited_by != "memory":
        kind = f"RAM than its {task.machine.limited_by} has left"
    nearest = list(islice(_alternatives(task, n_ctx), N_ALTERNATIVES))
    phrases = [" ".join(f"{name}={value}" for name, value in changes.items()) for changes in nearest]
    advice = f"{' or '.join(phrases)} would fit" if nearest else "free memory, or take a smaller model"
    return MemoryShortageError(
        f"context {n_ctx} with {quant} needs {show_size(missing)} more {kind}; {advice}.",
        settings=[name for changes in nearest for name in changes],
    )


def _alternatives(task: Task, n_ctx: int) -> Iterator[dict[str, Any]]:
    """Options that, in the place of those that were given, make it fit."""
    options = task.options

    def fits(**changes: Any) -> bool:
        tried = replace(task, options=replace(options, **changes))
        return any(search.fit() is not None for search in _searches(tried))

    steps = (n_ctx - 1) // LEAST_N_CTX
    if most := _largest(steps, lambda n: fits(n_ctx=n * LEAST_N_CTX)):
        yield {"n_ctx": most * LEAST_N_CTX}
    candidates: list[list[dict[str, Any]]] = []
    if options.type_k is not None or options.type_v is not None:
        given = (options.type_k, options.type_v)
        smaller = [kind for kind in SMALLER_CACHE_TYPES if kind not in given]
        candidates.append([{"type_k": kind, "type_v": kind} for kind in smaller])
    if options.quant is not None:
        candidates.append([{"quant": quant} for quant in task.bundle.quants(None)])
    if options.n_ubatch is not None:
        candidates.append([{"n_ubatch": SMALLER_N_UBATCH[-1]}])
    if options.use_mmap is False:
        candidates.append([{"use_mmap": True}])
    if options.n_gpu_layers:
        candidates.append([{"n_gpu_layers": 0}])
    if not options.allow_paging:
        candidates.append([{"allow_paging": True}])
    for kind in candidates:
        if fitting := next((changes for changes in kind if fits(**changes)), None):
            yield fitting


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to ``most`` that fits, if all below it do; 0 if none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
