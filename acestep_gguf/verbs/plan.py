"""``acestep-gguf plan``: what would go where, on this machine or another."""

from dataclasses import replace
from pathlib import Path

import msgspec

from acestep_gguf.plan.bundle_model import BundleModel
from acestep_gguf.plan.machine import Gpu, Machine, this_machine
from acestep_gguf.plan.machine_settings import machine_settings
from acestep_gguf.plan.planner import make_plan
from acestep_gguf.plan.report import plan_facts, plan_table
from acestep_gguf.plan.search import Defaults
from acestep_gguf.plan.settings import Wish
from acestep_gguf.plan.speed import Rates, measured_rates


def plan(
    folder: Path,
    wish: Wish,
    *,
    ram: int | None,
    vram: list[int],
    rates: Rates,
    as_json: bool,
) -> None:
    """Print the plan of a bundle for this machine, or for one with ``ram`` and ``vram`` bytes.

    Raises:
        MemoryShortageError: nothing fits.
    """
    model = BundleModel(folder)
    defaults = None
    if ram is None and not vram:
        machine = this_machine()
        measured = measured_rates(machine.n_threads)
        rates = replace(rates, ram=rates.ram or measured.ram, cpu_flops=rates.cpu_flops or measured.cpu_flops)
        record = model.bundle.decoder(wish.quant)
        defaults = Defaults.of(machine_settings(model.bundle, record, pictures=wish.images > 0)[0])
    else:
        machine = told_machine(ram, vram)
    made = make_plan(model, machine, wish, rates=rates, defaults=defaults)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(plan_facts(made)), indent=2).decode())
    else:
        print(plan_table(made))


def told_machine(ram: int | None, vram: list[int]) -> Machine:
    """A machine that need not be here; without ``ram``, with the RAM of this one."""
    here = this_machine()
    names = ["GPU"] if len(vram) == 1 else [f"GPU {number}" for number in range(1, len(vram) + 1)]
    return Machine(
        ram=here.ram if ram is None else ram,
        n_threads=here.n_threads,
        gpus=tuple(Gpu(name=name, memory=size) for name, size in zip(names, vram, strict=True)),
        limited_by="memory" if ram is not None else here.limited_by,
    )
