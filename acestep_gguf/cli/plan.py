"""``acestep-gguf plan``: what would go where, on this machine or another."""

from dataclasses import replace
from math import inf, nan
from typing import TYPE_CHECKING, Annotated

import typer

from acestep_gguf.cli.option_groups import takes_groups
from acestep_gguf.cli.options import AsJson, BundleFolder
from acestep_gguf.cli.terminal import json_text
from acestep_gguf.errors import UsageError
from acestep_gguf.options import EngineOptions

if TYPE_CHECKING:
    from acestep_gguf.plan.machine import Machine


def rate(argument: str) -> float:
    """Operations a second, such as 2e12.

    Raises:
        typer.BadParameter: not a number above 0.
    """
    try:
        number = float(argument)
    except ValueError:
        number = nan
    if not 0 < number < inf:  # NaN fails both
        raise typer.BadParameter(f"{argument!r} is not a number above 0.")
    return number


Bandwidth = Annotated[str | None, typer.Option(metavar="SIZE", help="Bytes a second, such as 50GB.")]


@takes_groups
def plan(
    bundle: BundleFolder,
    *,
    ram: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="RAM to plan for, such as 16GB. By default what is free here."),
    ] = None,
    vram: Annotated[
        list[str] | None,
        typer.Option(metavar="SIZE", help="Memory of a GPU to plan for; repeat for more GPUs."),
    ] = None,
    images: Annotated[int, typer.Option(min=0, help="Pictures in one question.")] = 1,
    ram_bandwidth: Bandwidth = None,
    vram_bandwidth: Bandwidth = None,
    pcie_bandwidth: Bandwidth = None,
    disk_bandwidth: Bandwidth = None,
    cpu_flops: Annotated[
        float | None,
        typer.Option(parser=rate, help="Operations a second of the CPU in prefill, such as 2e11."),
    ] = None,
    gpu_flops: Annotated[
        float | None, typer.Option(parser=rate, help="Operations a second of the GPU in prefill.")
    ] = None,
    as_json: AsJson = False,
    engine: EngineOptions,
) -> None:
    """Show memory, settings and expected speed.

    Nothing is loaded. With --ram or --vram the plan is for another machine.
    """
    from pathlib import Path

    from acestep_gguf.llama.params import check_repacking
    from acestep_gguf.plan.bundle_model import BundleModel
    from acestep_gguf.plan.draft import open_draft
    from acestep_gguf.plan.machine import this_machine
    from acestep_gguf.plan.machine_settings import machine_settings, plain_settings
    from acestep_gguf.plan.planner import check_pictures_fit, make_plan
    from acestep_gguf.plan.report import plan_facts, plan_table
    from acestep_gguf.plan.settings import Workload
    from acestep_gguf.plan.speed import Rates, measured_rates

    rates = Rates(
        ram=_bandwidth(ram_bandwidth, "--ram-bandwidth"),
        vram=_bandwidth(vram_bandwidth, "--vram-bandwidth"),
        pcie=_bandwidth(pcie_bandwidth, "--pcie-bandwidth"),
        disk=_bandwidth(disk_bandwidth, "--disk-bandwidth"),
        cpu_flops=cpu_flops,
        gpu_flops=gpu_flops,
    )
    model = BundleModel(bundle)
    quant = model.quants(engine.quant)[0]
    draft = None if engine.draft is None else open_draft(Path(engine.draft), model, quant)
    if engine.rpc is not None and (ram is not None or vram):
        raise UsageError(
            "with rpc the plan is for what this machine and its servers have: leave out --ram and --vram.",
            settings=["rpc"],
        )
    if ram is None and not vram:
        machine = this_machine(engine.rpc_addresses)
        measured = measured_rates(machine.n_threads, model.decoder(quant).main_type)
        rates = replace(rates, ram=rates.ram or measured.ram, cpu_flops=rates.cpu_flops or measured.cpu_flops)
        record = model.bundle.decoder(quant)
        defaults, _ = machine_settings(model.bundle, record, pictures=model.bundle.vision is not None)
    else:
        machine = _described_machine(ram, vram or [])
        defaults = plain_settings(machine.n_threads)
        draft = draft and replace(draft, machine_settings=defaults)
    check_repacking(engine.use_extra_bufts)  # the CPU is this one, whatever memory is planned for
    check_pictures_fit(model, engine, images)
    workload = Workload(images=images)
    made = make_plan(model, machine, engine, workload, rates=rates, defaults=defaults, draft=draft)
    print(json_text(plan_facts(made)) if as_json else plan_table(made))


def _bandwidth(text: str | None, name: str) -> int | None:
    from acestep_gguf.sizes import parse_size

    if text is None:
        return None
    size = parse_size(text, name)
    if size == 0:
        raise UsageError(f"{name} is 0: leave it out if it is not known.")
    return size


def _described_machine(ram: str | None, vram: list[str]) -> "Machine":
    """A machine with this one's CPUs, and with so much RAM and memory of GPUs; by default this one's RAM."""
    from acestep_gguf.plan.machine import Gpu, Machine, this_machine
    from acestep_gguf.sizes import parse_size

    here = this_machine()
    sizes = [parse_size(size, "--vram") for size in vram]
    names = ["GPU"] if len(sizes) == 1 else [f"GPU {number}" for number in range(1, len(sizes) + 1)]
    return Machine(
        ram=here.ram if ram is None else parse_size(ram, "--ram"),
        n_threads=here.n_threads,
        gpus=tuple(Gpu(name=name, memory=size) for name, size in zip(names, sizes, strict=True)),
        limited_by="memory" if ram is not None else here.limited_by,
    )
