"""Plans for a bundle with int8 layers."""

import shutil
from pathlib import Path

import pytest

from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.errors import BundleError, UsageError
from acestep_gguf.options import EngineOptions
from acestep_gguf.plan.bundle_model import BundleModel
from acestep_gguf.plan.machine import Gpu, Machine
from acestep_gguf.plan.memory import Part
from acestep_gguf.plan.planner import Plan, make_plan
from acestep_gguf.plan.report import plan_table
from acestep_gguf.plan.settings import Workload
from tests.support.tiny_checkpoints import TinyCheckpoint

INT8 = EngineOptions(prefill="int8")
GB = 10**9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    checkpoint = TinyCheckpoint(n_layers=8, intermediate_size=2048).write(folder / "checkpoint")
    convert_checkpoint(checkpoint, folder / "bundle", ("Q4_K_M", "Q8_0"), prefill=True)
    return folder / "bundle"


@pytest.fixture(scope="module")
def bundle(folder: Path) -> BundleModel:
    return BundleModel(folder)


def plan(bundle: BundleModel, ram: int = GB, options: EngineOptions | None = None, n_gpus: int = 0) -> Plan:
    gpus = tuple(Gpu(name="GPU", memory=8 * GB) for _ in range(n_gpus))
    return make_plan(
        bundle, Machine(ram=ram, n_threads=2, gpus=gpus), options, Workload(images=0, n_text=100)
    )


def int8_parts(plan: Plan) -> dict[str, Part]:
    return {part.name: part for part in plan.memory.parts if "int8" in part.name}


def test_all_layers_are_mapped_where_there_is_room(bundle: BundleModel) -> None:
    made = plan(bundle)
    assert made.settings.int8_layers == "kept"
    layout = bundle.int8_layers
    assert layout is not None
    weights = int8_parts(made)["int8 layers, weights"]
    assert (weights.n_bytes, weights.kind) == (8 * layout.stride, "mapped")
    assert "the int8 layers their long parts" in plan_table(made)


def test_without_room_llama_cpp_reads_and_the_plan_says_so(bundle: BundleModel) -> None:
    room = plan(bundle, options=EngineOptions(prefill="off")).memory.ram
    made = plan(bundle, room)
    assert made.settings.int8_layers is None
    assert "prompts read by llama.cpp, not in int8" in made.given_up
    assert not int8_parts(made)


def test_asked_for_the_layers_are_streamed(bundle: BundleModel) -> None:
    kept = plan(bundle, options=INT8)
    made = plan(bundle, kept.memory.ram - 4 * 10**6, INT8)
    assert made.settings.int8_layers == "streamed"
    assert "int8 layers read from disk for each prompt" in made.given_up
    weights, all_weights = (int8_parts(one)["int8 layers, weights"].n_bytes for one in (made, kept))
    assert weights == all_weights / 4
    assert "read from disk each time" in plan_table(made)


def test_llama_cpp_reads_alone_where_the_layers_cannot(bundle: BundleModel) -> None:
    assert plan(bundle, options=EngineOptions(prefill="off")).settings.int8_layers is None
    assert plan(bundle, options=EngineOptions(type_k="q8_0", flash_attn="on")).settings.int8_layers is None
    on_gpu = plan(bundle, n_gpus=1)
    assert on_gpu.settings.n_gpu_layers > 0
    assert on_gpu.settings.int8_layers is None


def test_without_them_their_files_may_be_missing(folder: Path, tmp_path: Path) -> None:
    """They are the largest files that a board can do without."""
    board = Path(shutil.copytree(folder, tmp_path / "board"))
    (board / "prefill-int8.onnx.data").unlink()
    off = EngineOptions(prefill="off", n_ctx=128, n_threads=1)
    with AceStep(board, off) as model:
        assert model.generate("What is that?", max_tokens=2).tokens
    with pytest.raises(BundleError, match="is missing"):
        plan(BundleModel(board))


def test_a_long_text_behind_pictures_is_planned_for(bundle: BundleModel) -> None:
    def parts(n_after: int) -> dict[str, int]:
        workload = Workload(n_text=n_after + 100, n_text_before=50, n_text_after=n_after)
        options = EngineOptions(prefill="int8")
        made = make_plan(bundle, Machine(ram=GB, n_threads=2, gpus=()), options, workload)
        return {part.name: part.n_bytes for part in made.memory.parts}

    short, long = parts(100), parts(200)
    a_token = 8 * 2 * 128 * 2  # keys and values of all layers in float16
    assert long["keys and values"] - short["keys and values"] == 200 * a_token
    assert long["int8 layers, activations"] > short["int8 layers, activations"]


def test_decoders_of_more_bits_read_for_themselves_unless_asked(bundle: BundleModel) -> None:
    assert plan(bundle, options=EngineOptions(quant="Q8_0")).settings.int8_layers is None
    assert plan(bundle, options=EngineOptions(quant="Q8_0", prefill="int8")).settings.int8_layers == "kept"


def test_what_contradicts_itself_is_refused(bundle: BundleModel, tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="prefill int8 writes no q8_0 keys"):
        plan(bundle, options=EngineOptions(prefill="int8", type_v="q8_0"))
    with pytest.raises(UsageError, match="has no int8 layers"):
        plan(BundleModel(tiny_bundle), options=INT8)
    with pytest.raises(UsageError, match="prefill is 'fast'"):
        EngineOptions(prefill="fast")  # type: ignore[arg-type]
