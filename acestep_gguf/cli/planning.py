"""The verb that plans."""

from dataclasses import asdict, fields
from typing import Annotated

import typer

from acestep_gguf.cli.option_groups import EngineOptions, takes_groups
from acestep_gguf.cli.options import AsJson, BundleFolder

Bandwidth = Annotated[str | None, typer.Option(metavar="SIZE", help="Bytes a second, such as 50GB.")]


@takes_groups
def plan(
    bundle: BundleFolder,
    *,
    ram: Annotated[
        str | None, typer.Option(metavar="SIZE", help="RAM to plan for, such as 16GB. Default: what is free.")
    ] = None,
    vram: Annotated[
        list[str] | None,
        typer.Option(metavar="SIZE", help="Memory of a GPU to plan for; repeat for several."),
    ] = None,
    images: Annotated[int, typer.Option(min=0, help="Pictures asked about at once.")] = 1,
    ram_bandwidth: Bandwidth = None,
    vram_bandwidth: Bandwidth = None,
    pcie_bandwidth: Bandwidth = None,
    disk_bandwidth: Bandwidth = None,
    cpu_flops: Annotated[float | None, typer.Option(help="Operations a second in prefill.")] = None,
    gpu_flops: Annotated[float | None, typer.Option(help="The same of the GPU.")] = None,
    as_json: AsJson = False,
    engine: EngineOptions,
) -> None:
    """Show what would go where: memory, settings and expected speed; nothing is loaded."""
    from acestep_gguf.plan.settings import Wish
    from acestep_gguf.plan.sizes import parse_size
    from acestep_gguf.plan.speed import Rates
    from acestep_gguf.verbs.plan import plan as plan_verb

    def size(text: str | None) -> int | None:
        return None if text is None else parse_size(text)

    wishes = {field.name for field in fields(Wish)}
    plan_verb(
        bundle,
        Wish(images=images, **{name: value for name, value in asdict(engine).items() if name in wishes}),
        ram=size(ram),
        vram=[parse_size(text) for text in vram or []],
        rates=Rates(
            ram=size(ram_bandwidth),
            vram=size(vram_bandwidth),
            pcie=size(pcie_bandwidth),
            disk=size(disk_bandwidth),
            cpu_flops=cpu_flops,
            gpu_flops=gpu_flops,
        ),
        as_json=as_json,
    )
