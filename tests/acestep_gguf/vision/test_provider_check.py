"""Providers of onnxruntime beside the CPU's; those that the installed one has not are refused."""

from dataclasses import replace
from pathlib import Path

import onnxruntime as ort
import pytest

from acestep_gguf.bundle.names import VisionPrecision
from acestep_gguf.bundle.schema import Bundle, VisionFile
from acestep_gguf.errors import UsageError
from acestep_gguf.options import EngineOptions, TowerProvider
from acestep_gguf.ort_session import PROVIDERS
from acestep_gguf.plan.bundle_model import BundleModel
from acestep_gguf.plan.machine import Gpu, Machine
from acestep_gguf.plan.memory import PROVIDER_BYTES
from acestep_gguf.plan.planner import make_plan
from acestep_gguf.vision.provider_check import right_provider
from acestep_gguf.vision.tower import VisionTower

GIB = 2**30
OTHERS: list[TowerProvider] = ["cuda", "openvino", "coreml", "qnn"]


@pytest.mark.parametrize("provider", OTHERS)
def test_a_provider_gives_the_cpus_numbers_or_is_refused(tiny_bundle: Path, provider: TowerProvider) -> None:
    bundle = Bundle.read(tiny_bundle)
    if PROVIDERS[provider][0] in ort.get_available_providers():
        assert right_provider(tiny_bundle, bundle, provider, n_threads=1) == provider
        return
    with pytest.raises(UsageError, match=f"vision_provider is {provider}, which this onnxruntime does not"):
        VisionTower(tiny_bundle, bundle, "float32", n_threads=1, provider=provider)


def on_gpu(memory: int) -> Machine:
    gpu = Gpu(name="a GPU", memory=memory)
    return Machine(ram=64 * GIB, n_threads=4, gpus=(gpu,), tower_provider="cuda")


def test_the_tower_goes_to_the_gpu_where_it_has_room_beside_all_layers(tiny_bundle: Path) -> None:
    bundle = BundleModel(tiny_bundle)
    plan = make_plan(bundle, on_gpu(4 * GIB))
    assert (plan.settings.vision_provider, plan.settings.vision) == ("cuda", "float32")
    towers = [part for part in plan.memory.parts if part.name.startswith("vision tower")]
    assert len(towers) == 2
    assert all((part.device, part.kind) == (1, "gpu") for part in towers)

    crowded = make_plan(bundle, on_gpu(plan.memory.gpu(1) - 1))
    assert crowded.settings.vision_provider == "cpu"
    assert crowded.settings.n_gpu_layers == plan.settings.n_gpu_layers


def test_a_provider_that_was_asked_for_is_kept(tiny_bundle: Path) -> None:
    machine = Machine(ram=64 * GIB, n_threads=4)
    on_cpu = make_plan(BundleModel(tiny_bundle), machine, EngineOptions(vision="float32"))
    asked = make_plan(BundleModel(tiny_bundle), machine, EngineOptions(vision_provider="openvino"))
    assert (asked.settings.vision_provider, asked.settings.vision) == ("openvino", "float32")
    weights, compiled = (
        next(part.n_bytes for part in plan.memory.parts if part.name == "vision tower, weights")
        for plan in (on_cpu, asked)
    )
    assert compiled == 2 * weights + PROVIDER_BYTES
    with pytest.raises(UsageError, match="the int8 tower is made for CPUs"):
        make_plan(BundleModel(tiny_bundle), machine, EngineOptions(vision="int8", vision_provider="openvino"))
    with pytest.raises(UsageError, match="vision_provider is 'tpu': choose from auto, cpu, cuda"):
        EngineOptions(vision_provider="tpu")  # type: ignore[arg-type]


def test_a_bundle_without_a_float32_tower_runs_on_the_cpu_only(bundle_copy: Path) -> None:
    described = Bundle.read(bundle_copy)
    vision, _ = described.tower()
    files: dict[VisionPrecision, VisionFile] = {"int8": vision.files["int8"]}
    replace(described, vision=replace(vision, default="int8", files=files)).write(bundle_copy)
    bundle = BundleModel(bundle_copy)
    assert make_plan(bundle, on_gpu(4 * GIB)).settings.vision_provider == "cpu"
    with pytest.raises(UsageError, match="needs the float32 tower"):
        make_plan(bundle, on_gpu(4 * GIB), EngineOptions(vision_provider="cuda"))
