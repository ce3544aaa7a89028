"""A plan as people and programs read it: one line, a table, or JSON."""

from dataclasses import asdict
from typing import Any

from acestep_gguf.plan.machine import reinstall_command
from acestep_gguf.plan.memory import Memory, Part
from acestep_gguf.plan.planner import Plan
from acestep_gguf.sizes import show_size

UNPROVEN_GPU = (
    "buffers on a GPU are proven on one that is played, not yet proven on a real one (docs/hardware.md)"
)
SERVERS = (
    "servers add memory, not speed: they compute one after the other; what is sent to them is not encrypted, "
    "and nobody is asked who they are (docs/scale.md)"
)


def plan_line(plan: Plan) -> str:
    """The plan on one line."""
    settings, memory = plan.settings, plan.memory
    facts = [
        f"{settings.quant}, context {settings.n_ctx}, KV {_cache_types(plan)}, "
        f"micro-batch {settings.n_ubatch}, {settings.n_threads} threads",
        f"RAM {show_size(memory.ram)} of {show_size(plan.machine.ram)} "
        f"({show_size(memory.anonymous)} anonymous, {show_size(memory.mapped)} mapped)",
        *(
            f"{settings.tensor_split[number - 1] if settings.tensor_split else 0} layers and "
            f"{show_size(memory.gpu(number))} of {show_size(gpu.memory)} on {gpu.name}"
            for number, gpu in enumerate(plan.machine.gpus, 1)
        ),
        *plan.given_up,
    ]
    if plan.paged:
        facts.append(f"{show_size(plan.paged)} paged from disk, {_speed(plan.speed.decode)}")
    if plan.machine.unused_gpu:
        facts.append(f"this machine's GPU is not used: {reinstall_command(plan.machine.unused_gpu)}")
    return f"[plan: {' | '.join(facts)}]"


def plan_table(plan: Plan) -> str:
    """The plan as a table of what lies where, in bytes, and what follows from it."""
    settings, memory, machine = plan.settings, plan.memory, plan.machine
    rows = [("", "bytes", "")]
    for device, title in enumerate(["RAM", *(gpu.name for gpu in machine.gpus)]):
        parts = [part for part in memory.parts if part.device == device]
        peak = memory.gpu(device) if device else memory.ram
        free = machine.gpus[device - 1].memory if device else machine.ram
        rows.append((title, f"{peak:,}", f"of {free:,} that are free"))
        for part in parts:
            kind = part.kind if device == 0 else ""
            rows.append((f"  {part.name}", f"{part.n_bytes:,}", kind + _when(part, memory)))
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{name:<{width}} {size:>16}  {kind}".rstrip() for name, size, kind in rows]
    facts = [
        ("decoder", f"{settings.quant}; tower: {_tower(plan)}"),
        ("context", f"{settings.n_ctx} tokens, KV {_cache_types(plan)}{_kv_place(plan)}"),
        ("batches", f"n_batch {settings.n_batch}, n_ubatch {settings.n_ubatch}"),
        ("threads", f"{settings.n_threads} to write, {settings.n_threads_batch} to read"),
        ("weights", _weights(plan)),
        ("reading", _reading(plan)),
        ("given up", "; ".join(plan.given_up) or "nothing"),
        ("limit", plan.limit),
        ("decode", f"{_speed(plan.speed.decode)} = {plan.speed.decode_formula}"),
        ("prefill", f"{_speed(plan.speed.prefill)} = {plan.speed.prefill_formula}"),
    ]
    if len(machine.gpus) > machine.n_remote:
        facts.append(("note", UNPROVEN_GPU))
    if machine.n_remote:
        facts.append(("servers", SERVERS))
    if machine.unused_gpu:
        facts.append(
            (
                "GPU",
                f"not used by this llama.cpp, but by this one: {reinstall_command(machine.unused_gpu)}",
            )
        )
    return "\n".join([*lines, "", *(f"{name:<9} {text}" for name, text in facts)])


def plan_facts(plan: Plan) -> dict[str, Any]:
    """The plan for a program; sizes in bytes, speeds in tokens a second."""
    memory, machine = plan.memory, plan.machine
    return {
        "settings": asdict(plan.settings),
        "ram": {
            "needed": memory.ram,
            "available": machine.ram,
            "anonymous": memory.anonymous,
            "mapped": memory.mapped,
            "paged": plan.paged,
            "limited_by": machine.limited_by,
        },
        "gpus": [
            {
                "name": gpu.name,
                "needed": memory.gpu(number),
                "available": gpu.memory,
                "remote": gpu.remote,
                "proven": gpu.remote,
            }
            for number, gpu in enumerate(machine.gpus, 1)
        ],
        "parts": [asdict(part) for part in memory.parts],
        "speed": asdict(plan.speed),
        "given_up": plan.given_up,
        "limit": plan.limit,
        "unused_gpu": machine.unused_gpu,
    }


def _when(part: Part, memory: Memory) -> str:
    """When a part is taken, if not all the time."""
    if part.phase == "opening":
        return ", before anything else is loaded"
    if not memory.staged:
        return ""
    return {"tower": ", until pictures are encoded", "decoder": ", after that"}.get(part.phase, "")


def _tower(plan: Plan) -> str:
    settings = plan.settings
    where = "" if settings.vision_provider == "cpu" else f" by {settings.vision_provider}"
    return f"{settings.vision}{where}" if settings.vision else "not used"


def _cache_types(plan: Plan) -> str:
    types = dict.fromkeys((plan.settings.type_k, plan.settings.type_v))
    return "/".join(types)


def _kv_place(plan: Plan) -> str:
    if not plan.machine.gpus:
        return ""
    return ", beside its layers" if plan.settings.offload_kqv else ", all in RAM"


def _weights(plan: Plan) -> str:
    settings = plan.settings
    how = "mapped from the file" if settings.use_mmap else "read into memory"
    locked = ", locked" if settings.use_mlock else ""
    is_alone = len(plan.machine.gpus) == plan.machine.n_remote  # with a GPU, llama.cpp repacks nothing
    repacked = ", repacked for the CPU" if settings.use_extra_bufts and is_alone else ""
    return how + locked + repacked


def _reading(plan: Plan) -> str:
    layers = plan.settings.int8_layers
    if layers is None:
        return "llama.cpp reads prompts"
    how = {"kept": "", "streamed": ", which are read from disk each time,"}[layers]
    return f"llama.cpp reads prompts, the int8 layers{how} their long parts"


def _speed(tokens_per_s: float | None) -> str:
    return "unknown" if tokens_per_s is None else f"about {tokens_per_s:.3g} tokens/s"
