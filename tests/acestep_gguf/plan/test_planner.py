"""Plans for machines that are not here."""

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep_gguf.errors import BundleError, MemoryShortageError, UsageError
from acestep_gguf.options import EngineOptions
from acestep_gguf.plan.bundle_model import BundleModel
from acestep_gguf.plan.draft import open_draft
from acestep_gguf.plan.machine import Gpu, Machine
from acestep_gguf.plan.machine_settings import plain_settings
from acestep_gguf.plan.memory import GPU_RESERVE
from acestep_gguf.plan.planner import make_plan
from acestep_gguf.plan.settings import PHOTO_BYTES, Workload
from acestep_gguf.plan.speed import Rates

GB = 10**9


def machine(ram: float, *vram: float) -> Machine:
    gpus = tuple(Gpu(name=f"GPU {n}", memory=int(size * GB)) for n, size in enumerate(vram, 1))
    return Machine(ram=int(ram * GB), n_threads=4, gpus=gpus)


@pytest.mark.slow
def test_with_room_nothing_is_given_up(large: BundleModel) -> None:
    plan = make_plan(
        large, machine(64), defaults=replace(plain_settings(4), n_ubatch=256, use_extra_bufts=True)
    )
    assert plan.given_up == ()
    assert (plan.settings.n_ctx, plan.settings.type_k, plan.settings.n_ubatch) == (8192, "f16", 256)
    assert plan.settings.use_extra_bufts
    assert plan.settings.quant == "Q4_K_M"
    sizes = {part.name: part.n_bytes for part in plan.memory.parts}
    assert sizes["KV cache"] == 8192 * 64 * 2 * 1024 * 2  # tokens, layers, K and V, width, float16
    assert plan.memory.ram == sum(part.n_bytes for part in plan.memory.parts if part.phase != "opening")


@pytest.mark.parametrize(
    ("n_text", "n_ctx"), [(3000, 3072), (3072, 3072), (8000, 8192), (20_000, 20_224), (10**6, 131_072)]
)
def test_a_context_is_as_large_as_needed(large: BundleModel, n_text: int, n_ctx: int) -> None:
    workload = Workload(images=0, n_text=n_text)
    assert make_plan(large, machine(640), workload=workload).settings.n_ctx == n_ctx
    assert make_plan(large, machine(640), EngineOptions(n_ctx=5000), workload).settings.n_ctx == 5000


def test_however_little_is_needed_pictures_and_an_answer_have_room(large: BundleModel) -> None:
    plan = make_plan(large, machine(64), workload=Workload(n_text=1, images=8))
    assert plan.settings.n_ctx == large.image_tokens(8) + 512


def test_concessions_are_made_in_their_order(large: BundleModel) -> None:
    room = make_plan(large, machine(64)).memory.ram / GB
    assert make_plan(large, machine(room - 0.01)).given_up == ("KV cache q8_0",)
    assert make_plan(large, machine(room - 1.1)).given_up[0] == "KV cache q4_0"
    least = make_plan(large, machine(room - 1.8))
    assert least.given_up[0] == "KV cache q4_0"
    assert len(least.given_up) > 1


def test_a_concession_that_was_not_needed_is_taken_back(large: BundleModel) -> None:
    # KV types and micro-batches are tried first, but only staging is enough here, and is enough by itself.
    asked = (EngineOptions(n_ctx=256), Workload(images=64))
    room = make_plan(large, machine(64), *asked).memory
    tower = sum(part.n_bytes for part in room.parts if part.phase == "tower")
    plan = make_plan(large, machine((room.ram - tower + 10**6) / GB), *asked)
    assert plan.given_up == ("tower staged: freed before the decoder is loaded",)
    assert plan.settings.type_k == "f16"


def test_what_was_set_by_hand_is_kept(large: BundleModel) -> None:
    options = EngineOptions(n_ctx=4096, type_k="f16", type_v="f16", n_ubatch=512, use_mmap=True, n_threads=3)
    plan = make_plan(large, machine(40), options)
    for name in ("n_ctx", "type_k", "type_v", "n_ubatch", "use_mmap", "n_threads"):
        assert getattr(plan.settings, name) == getattr(options, name)
    with pytest.raises(UsageError, match="made for 1 to 131072 tokens"):
        make_plan(large, machine(64), EngineOptions(n_ctx=200_000))
    with pytest.raises(UsageError, match="flash attention"):
        make_plan(large, machine(64), EngineOptions(type_v="q8_0", flash_attn="off"))


def test_the_refusal_names_what_would_fit(large: BundleModel) -> None:
    options = EngineOptions(n_ctx=8192, type_k="f16", type_v="f16")
    with pytest.raises(MemoryShortageError) as caught:
        make_plan(large, machine(21.5), options)
    message = str(caught.value)
    assert message.startswith("context 8192 with Q4_K_M needs ")
    assert " MB more RAM; n_ctx=" in message
    assert "type_k=q8_0 type_v=q8_0" in message
    assert {"n_ctx", "type_k", "type_v"} <= set(caught.value.settings)
    assert "\n" not in message
    n_ctx = int(re.findall(r"n_ctx=(\d+)", message)[0])
    make_plan(large, machine(21.5), replace(options, n_ctx=n_ctx))
    with pytest.raises(MemoryShortageError):
        make_plan(large, machine(21.5), replace(options, n_ctx=n_ctx + 1024))
    make_plan(large, machine(21.5), replace(options, type_k="q8_0", type_v="q8_0"))


STATE_BYTES = 64 * 2 * 1024 * 2  # of a token of the 32B in float16: layers, K and V, width


def test_the_copy_of_the_state_is_planned_and_the_first_to_go(large: BundleModel) -> None:
    options, workload = EngineOptions(cache=True), Workload(n_text_before=100)
    plan = make_plan(large, machine(64), options, workload)
    without = make_plan(large, machine(64), workload=workload)
    n_tokens = 100 + large.image_tokens(1)
    assert plan.memory.anonymous - without.memory.anonymous == n_tokens * STATE_BYTES
    assert plan.settings.keep_states
    assert not without.settings.keep_states
    assert not make_plan(large, machine(64), options, Workload(images=0)).settings.keep_states
    tight = make_plan(large, machine(plan.memory.ram / GB - 0.001), options, workload)
    assert tight.given_up == ("decoder's state not kept on disk",)
    assert tight.settings.type_k == "f16"


def test_fewer_image_tokens_take_less_context(large: BundleModel) -> None:
    workload = Workload(images=100, n_text=100)
    n_ctx = make_plan(large, machine(640), workload=workload).settings.n_ctx
    fewer = make_plan(large, machine(640), EngineOptions(image_tokens=10), workload)
    assert (n_ctx, fewer.settings.n_ctx) == (large.image_tokens(100) + 512, 100 * 10 + 512)
    (chosen,) = (part.n_bytes for part in fewer.memory.parts if part.name == "chosen image tokens")
    assert chosen == 100 * 10 * 4 * 5120


def test_given_embeds_take_context_but_no_tower(large: BundleModel) -> None:
    encoded, given = (
        make_plan(large, machine(64), workload=Workload(images=9, n_embeds=n, n_text=9)) for n in (0, 9)
    )
    assert given.settings.n_ctx == encoded.settings.n_ctx == large.image_tokens(9) + 512
    assert (encoded.settings.vision, given.settings.vision) == ("float32", None)
    names = {part.name for part in given.memory.parts}
    assert "image embeds" in names
    assert not any("tower" in name for name in names)


def test_pictures_are_opened_before_the_rest_is_loaded_or_beside_it(large: BundleModel) -> None:
    loaded = make_plan(large, machine(640), workload=Workload(opening_ahead=0)).memory.ram
    ahead = make_plan(large, machine(640), workload=Workload(opening_ahead=10**9))
    assert ahead.memory.ram == loaded
    most = make_plan(large, machine(640), workload=Workload(opening_ahead=10**11))
    assert 10**11 < most.memory.ram < 10**11 + 10**8
    later = make_plan(large, machine(640), workload=Workload(opening_ahead=0, opening_later=10**9))
    assert later.memory.ram == loaded + 10**9
    assert later.opening_limit == 640 * GB - loaded
    fewest = make_plan(large, machine(loaded / GB), workload=Workload(opening_ahead=10**9))
    assert fewest.opening_limit == 10**9


def test_a_draft_is_planned(large: BundleModel, hollow_folder: Path) -> None:
    draft = open_draft(hollow_folder, large)
    options = EngineOptions(n_ctx=4096)
    plan = make_plan(large, machine(64), options, draft=draft)
    assert plan.draft is not None
    assert (plan.draft.n_ctx, plan.draft.vision) == (4096, "float32")
    alone = make_plan(draft.bundle, machine(64), options, defaults=draft.machine_settings)
    without = make_plan(large, machine(64), options)
    shared = sum(part.n_bytes for part in alone.memory.parts if part.name == "process")
    # The draft opens the pictures a second time.
    assert plan.memory.ram == without.memory.ram + alone.memory.ram - shared + PHOTO_BYTES
    later = Workload(opening_ahead=0, opening_later=PHOTO_BYTES)
    assert make_plan(large, machine(64), options, later, draft=draft).memory.ram == plan.memory.ram


def test_memory_of_a_gpu_that_is_ram_is_not_planned_twice(large: BundleModel) -> None:
    gpu = Gpu(name="integrated", memory=20 * GB)
    apart = Machine(ram=16 * GB, n_threads=4, gpus=(gpu,))
    plan = make_plan(large, apart)
    assert plan.memory.ram + plan.memory.gpu(1) > apart.ram

    with pytest.raises(MemoryShortageError):
        make_plan(large, replace(apart, gpus=(replace(gpu, shares_ram=True),)))
    roomy = Machine(ram=40 * GB, n_threads=4, gpus=(replace(gpu, shares_ram=True),))
    plan = make_plan(large, roomy)
    assert plan.settings.n_gpu_layers > 0
    in_ram = sum(part.n_bytes for part in plan.memory.parts if part.device == 0 and part.phase != "opening")
    assert plan.memory.ram == in_ram + plan.memory.gpu(1) <= roomy.ram
    assert plan.memory.anonymous >= plan.memory.gpu(1)

    tight = replace(roomy, ram=plan.memory.ram - GPU_RESERVE // 2)
    assert make_plan(large, tight).memory.ram <= tight.ram


def test_layers_for_a_gpu_that_is_not_there_are_refused(large: BundleModel) -> None:
    for n_gpu_layers in (-1, 99):
        with pytest.raises(UsageError, match=rf"n_gpu_layers is {n_gpu_layers}, but llama.cpp finds no GPU"):
            make_plan(large, machine(64), EngineOptions(n_gpu_layers=n_gpu_layers))
    unused = replace(machine(64), unused_gpu="CUDA")
    with pytest.raises(UsageError, match=r"or install llama.cpp for it: CMAKE_ARGS=.*CUDA"):
        make_plan(large, unused, EngineOptions(n_gpu_layers=99))
    assert make_plan(large, machine(64), EngineOptions(n_gpu_layers=0)).settings.n_gpu_layers == 0


def test_a_smaller_context_is_named_as_given_up(large: BundleModel) -> None:
    room = make_plan(large, machine(64), EngineOptions(n_ctx=1024, type_k="q4_0", type_v="q4_0"))
    plan = make_plan(large, machine(room.memory.ram / GB), workload=Workload(images=0, may_stage=False))
    assert plan.settings.n_ctx < 8192
    assert plan.given_up[0] == f"context {plan.settings.n_ctx} in the place of 8192"


def test_the_smaller_decoder_is_taken_where_the_default_does_not_fit(tiny_bundle: Path) -> None:
    bundle = BundleModel(tiny_bundle)
    assert bundle.quants("q8_0") == ["Q8_0"]
    assert bundle.quants(None)[0] == bundle.bundle.decoders.default


def test_a_tower_that_is_not_there_is_refused_even_without_pictures(large: BundleModel) -> None:
    for images in (0, 1):
        with pytest.raises(BundleError, match="no 'float16' tower"):
            make_plan(large, machine(64), EngineOptions(vision="float16"), Workload(images=images))
    assert make_plan(large, machine(64), EngineOptions(vision="FLOAT32"), Workload(images=0)).settings


def test_paging_only_on_request(large: BundleModel) -> None:
    with pytest.raises(MemoryShortageError, match="allow_paging=True"):
        make_plan(large, machine(12))
    plan = make_plan(large, machine(12), EngineOptions(allow_paging=True), rates=Rates(ram=40e9, disk=2e9))
    assert plan.memory.anonymous < 12 * GB < plan.memory.ram
    assert plan.paged == plan.memory.ram - 12 * GB
    assert plan.speed.decode is not None
    assert plan.speed.decode < 2e9 / plan.paged
    with pytest.raises(MemoryShortageError):  # not even what cannot be dropped
        make_plan(large, machine(0.2), EngineOptions(allow_paging=True))


@pytest.mark.parametrize("n_ctx", [8192, 131072])
@pytest.mark.parametrize("vram", [8.0, 12.0, 24.0])
def test_a_card_is_filled_but_not_beyond(large: BundleModel, vram: float, n_ctx: int) -> None:
    with_card = machine(64, vram)
    plan = make_plan(large, with_card, EngineOptions(n_ctx=n_ctx))
    assert plan.memory.gpu(1) <= vram * GB
    n_layers = plan.settings.n_gpu_layers
    if n_layers <= 64 and plan.settings.offload_kqv:
        pinned = EngineOptions(n_ctx=n_ctx, type_k="f16", type_v="f16", n_ubatch=512, offload_kqv=True)
        more = replace(pinned, n_gpu_layers=n_layers - plan.settings.n_attention_only + 1)
        with pytest.raises(MemoryShortageError):
            make_plan(large, with_card, more)


def test_several_cards_share_by_their_free_memory(large: BundleModel) -> None:
    plan = make_plan(large, machine(64, 24, 12))
    assert sum(plan.settings.tensor_split) == plan.settings.n_gpu_layers == 65
    assert plan.settings.tensor_split[0] > 1.5 * plan.settings.tensor_split[1]
    for number in (1, 2):
        assert plan.memory.gpu(number) <= plan.machine.gpus[number - 1].memory


def test_a_plan_for_32b_takes_under_a_second(large_folder: Path) -> None:
    started = time.process_time()
    make_plan(BundleModel(large_folder), machine(16, 12), EngineOptions(n_ctx=8192), Workload(images=2))
    assert time.process_time() - started < 1


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    quant=st.sampled_from(["Q4_K_M", "Q8_0"]),
    n_ctx=st.integers(1, 131072),
    cache_type=st.sampled_from(["f16", "q8_0", "q4_0"]),
    n_ubatch=st.sampled_from([64, 512, 2048]),
    images=st.integers(0, 4),
    repack=st.booleans(),
    mmap=st.booleans(),
)
def test_five_percent_more_than_needed_fits_and_five_less_is_refused(
    large: BundleModel,
    quant: str,
    n_ctx: int,
    cache_type: str,
    n_ubatch: int,
    images: int,
    repack: bool,
    mmap: bool,
) -> None:
    options = EngineOptions(
        quant=quant,
        n_ctx=n_ctx,
        type_k=cache_type,  # type: ignore[arg-type]
        type_v=cache_type,  # type: ignore[arg-type]
        n_ubatch=n_ubatch,
        use_extra_bufts=repack,
        use_mmap=mmap,
    )
    workload = Workload(images=images, may_stage=False)
    plan = make_plan(large, machine(1000), options, workload)
    need = plan.memory.ram / GB
    assert make_plan(large, machine(1.05 * need), options, workload).settings == plan.settings
    with pytest.raises(MemoryShortageError) as caught:
        make_plan(large, machine(0.95 * need), options, workload)
    assert "\n" not in str(caught.value)
