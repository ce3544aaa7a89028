"""A decoder, and its mmproj file if it can see, become a bundle that answers as llama.cpp does with them."""

import shutil
import struct
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import pytest
from gguf import GGMLQuantizationType as QType
from gguf import GGUFValueType
from numpy.typing import NDArray
from PIL import Image

from acestep_gguf import AceStep
from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.bundle.names import MmprojFtype
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.bundle.verify import verify_bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.convert.llama_cpp.gguf_import import import_gguf
from acestep_gguf.convert.tower.mmproj import (
    CLASS_TOKEN_LAST_KEY,
    HIDDEN_ACT_KEY,
    IMAGE_KEY,
    PROJECTOR_ACT_KEY,
)
from acestep_gguf.errors import (
    AceStepError,
    BundleError,
    CheckpointError,
    PromptError,
    UnsupportedModelError,
    UsageError,
)
from acestep_gguf.quantize.conversion_events import Event, Planned, Progress
from acestep_gguf.quantize.gguf_layout import boolean, f32, f32s, i32s, string, strings, u32
from acestep_gguf.vision.image import pixel_values
from scripts.checks.libmtmd import LlamaCppPair
from tests.support.fidelity import DEMO, TINY, drawing
from tests.support.gguf_files import Tensors, rewrite
from tests.support.tiny_checkpoints import TinyCheckpoint
from tests.support.tiny_internvl import TinyInternVL
from tests.support.tiny_pixtral import TinyPixtral
from tests.support.tiny_smolvlm import TinySmolVLM

SIGLIP = TinyCheckpoint(
    tower="siglip", activation="gelu_pytorch_tanh", strategy="full", feature_layer=-1, image_size=48
)
CLIP = TinyCheckpoint(image_size=42)
NOT_IN_LLAMA_CPP = {
    "tanh-full-padded",
    "siglip-default-v5",
    "internvl-6b-v5",
    "internvl-biases-under-norms-v4",
    "pixtral-silu-v5",
    *(name for name in TINY if name.startswith(("llava-next", "llava-onevision", "idefics2"))),
}
# What only our files say, and others' do not.
OURS = dict.fromkeys((IMAGE_KEY, HIDDEN_ACT_KEY, PROJECTOR_ACT_KEY))


class Made:
    """A bundle with an mmproj file, and what is imported from both."""

    def __init__(self, checkpoint: Path, folder: Path, mmproj: MmprojFtype = "F32") -> None:
        self.out = folder / "bundle"
        self.imported = folder / "imported"
        self.bundle = convert_checkpoint(
            checkpoint, self.out, ["F32"], vision=["float32"], mmproj=[mmproj], name="Tiny"
        )
        self.decoder = self.out / self.bundle.decoder().file
        self.mmproj = self.out / self.bundle.mmproj[mmproj].file

    def import_(self, *, decoder: Path | None = None, mmproj: Path | None = None, **options: Any) -> Bundle:
        options = {"vision": ["float32"], **options}
        return import_gguf(decoder or self.decoder, self.imported, mmproj=mmproj or self.mmproj, **options)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("clip")
    return Made(CLIP.write(folder / "checkpoint"), folder)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("siglip")
    return Made(SIGLIP.write(folder / "checkpoint"), folder)


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Any:
    """The pairs are made once, what is imported from them is not kept."""
    yield
    for name in {"clip", "siglip"} & set(request.fixturenames):
        shutil.rmtree(request.getfixturevalue(name).imported, ignore_errors=True)


def embeds(folder: Path, image: Image.Image) -> NDArray[np.float32]:
    bundle = Bundle.read(folder)
    session = onnxruntime.InferenceSession(str(folder / bundle.vision_file("float32").file))
    _, spec = bundle.tower()
    (found,) = session.run(["image_embeds"], {"pixel_values": pixel_values(image, spec)[0]})
    return np.asarray(found[0])


def relative_error(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", *sorted(set(TINY) - NOT_IN_LLAMA_CPP)])
@pytest.mark.parametrize(("mmproj", "limit"), [("F32", 1e-5), ("F16", 1e-3)])
def test_round_trip(tmp_path: Path, name: str, mmproj: MmprojFtype, limit: float) -> None:
    checkpoint = DEMO if name == "demo" else TINY[name].write(tmp_path / "checkpoint")
    made = Made(checkpoint, tmp_path, mmproj)
    imported = made.import_()
    image = drawing((90, 61), 0)
    assert relative_error(embeds(made.imported, image), embeds(made.out, image)) < limit
    # The stop tokens of generation_config.json are no part of a GGUF file: those are found by their names.
    assert imported.image == made.bundle.image
    assert imported.prompt.control_tokens == made.bundle.prompt.control_tokens
    assert imported.prompt.stop_tokens[0] == made.bundle.prompt.stop_tokens[0]
    assert imported.prompt.chat_template == made.bundle.prompt.chat_template


def test_what_others_wrote_into_the_metadata_is_skipped(clip: Made, tmp_path: Path) -> None:
    foreign = {
        "mradermacher.quantized_by": string("mradermacher"),
        "mradermacher.quantize_version": u32(2),
        "general.tags": strings(["image-text-to-text", "conversational"]),
        "foreign.not_a_number": f32(nan),
        "foreign.not_utf8": struct.pack("<IQ", GGUFValueType.STRING, 1) + b"\xff",
        "qwen2.rope.scaling.finetuned": boolean(False),
        "qwen2.of_a_later_version": f32s([1.0]),
        "llama.block_count": u32(7),
    }
    nested = struct.pack("<IIQIQ", *(GGUFValueType.ARRAY, GGUFValueType.ARRAY, 1, GGUFValueType.STRING, 0))
    clip.import_(
        decoder=rewrite(clip.decoder, tmp_path / "decoder.gguf", metadata=foreign),
        mmproj=rewrite(clip.mmproj, tmp_path / "mmproj.gguf", metadata={**foreign, "foreign.nested": nested}),
    )
    assert not verify_bundle(clip.imported).problems
    with AceStep(clip.imported, n_threads=1, n_ctx=256) as model:
        model.generate("What is this?", images=[drawing((70, 50), 1)], max_tokens=2)
    with pytest.raises(BundleError, match="is an array of arrays"):
        clip.import_(
            decoder=rewrite(clip.decoder, tmp_path / "nested.gguf", metadata={"foreign.nested": nested})
        )


def test_it_answers_as_the_original(clip: Made) -> None:
    clip.import_()
    answers = []
    for folder in (clip.out, clip.imported):
        with AceStep(folder, n_threads=1, n_ctx=256) as model:
            answers.append(
                model.generate("What is this?", images=[drawing((70, 50), 1)], max_tokens=8).tokens
            )
    assert answers[0] == answers[1]
    assert not verify_bundle(clip.imported).problems


@pytest.mark.parametrize(
    ("size", "qtype"),
    [
        ((48, 48), QType.F16),
        ((100, 61), QType.F16),
        ((37, 90), QType.BF16),
        ((20, 11), QType.Q8_0),
        ((301, 7), QType.Q4_0),
    ],
)
def test_pictures_are_prepared_as_by_llama_cpp(
    siglip: Made, tmp_path: Path, size: tuple[int, int], qtype: QType
) -> None:
    foreign = rewrite(siglip.mmproj, tmp_path / "mmproj.gguf", metadata=OURS, matrices=qtype)
    siglip.import_(mmproj=foreign)
    image = drawing(size, 2)
    with LlamaCppPair(siglip.decoder, foreign) as pair:
        theirs = pair.image_embeds(image)
    ours = embeds(siglip.imported, image)
    cosines = (theirs * ours).sum(1) / np.linalg.norm(theirs, axis=1) / np.linalg.norm(ours, axis=1)
    # llama.cpp rounds what it multiplies with quantized weights to 8 bits.
    assert cosines.min() > (0.999 if qtype in (QType.F16, QType.BF16) else 0.99)


def test_a_pixtral_of_others(tmp_path: Path) -> None:
    """As llama.cpp's converter writes it, without keys of ours."""
    tiny = TinyPixtral(decoder="tekken", activation="silu", head_dim=32)
    made = Made(tiny.write(tmp_path / "checkpoint"), tmp_path)
    metadata = {**OURS, CLASS_TOKEN_LAST_KEY: None, "clip.use_gelu": None}
    imported = made.import_(mmproj=rewrite(made.mmproj, tmp_path / "mmproj.gguf", metadata=metadata))
    found, expected = imported.tower()[1], made.bundle.tower()[1]
    assert (found.tiles, found.size, found.resample) == (expected.tiles, expected.size, expected.resample)
    assert (imported.prompt.image_token, imported.prompt.image_end) == ("[IMG]", "[IMG_END]")
    picture = drawing((90, 61), 5)
    # The file does not say that the projector's gelu is the exact one.
    assert relative_error(embeds(made.imported, picture), embeds(made.out, picture)) < 1e-3
    with AceStep(made.imported, n_threads=1, n_ctx=256) as model:
        answer = model.generate("कि É?", images=[picture], max_tokens=1)
    assert answer.usage.image_tokens == 6 * (8 + 1) - 1


def test_k_quants_are_read(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint(vision_hidden_size=256, vision_intermediate_size=512)
    made = Made(checkpoint.write(tmp_path / "checkpoint"), tmp_path)
    foreign = rewrite(made.mmproj, tmp_path / "mmproj.gguf", matrices=QType.Q6_K)
    made.import_(mmproj=foreign)
    image = drawing((40, 40), 3)
    assert 1e-4 < relative_error(embeds(made.imported, image), embeds(made.out, image)) < 0.1


def test_old_files_with_swapped_names_and_without_a_type(clip: Made, tmp_path: Path) -> None:
    """As llama.cpp's first converters wrote them: convert_image_encoder_to_gguf.py."""

    def swap(tensors: Tensors) -> Tensors:
        names = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
        tensors["v.position_embd.weight"] = np.roll(tensors["v.position_embd.weight"], 1, axis=0)
        return {
            ".".join(names.get(part, part) for part in name.split(".")): tensor
            for name, tensor in tensors.items()
        }

    old = rewrite(
        clip.mmproj,
        tmp_path / "mmproj.gguf",
        metadata={
            CLASS_TOKEN_LAST_KEY: None,
            "clip.projector_type": None,
            "clip.vision.feature_layer": None,
            "clip.has_llava_projector": boolean(True),
            "clip.has_text_encoder": boolean(False),
        },
        change=swap,
    )
    clip.import_(mmproj=old)
    image = drawing((42, 42), 4)
    assert relative_error(embeds(clip.imported, image), embeds(clip.out, image)) < 1e-5


def test_layers_behind_the_features_are_left_out(clip: Made, tmp_path: Path) -> None:
    one = rewrite(clip.mmproj, tmp_path / "mmproj.gguf", metadata={"clip.vision.feature_layer": i32s([1])})
    clip.import_(mmproj=one)
    session = onnxruntime.InferenceSession(str(clip.imported / "vision-float32.onnx"))
    assert session is not None
    names = (clip.imported / "vision-float32.onnx").read_bytes()
    assert b"v.blk.0.ln1" in names
    assert b"v.blk.1.ln1" not in names


def test_the_decoder_is_linked_or_copied(clip: Made) -> None:
    record = clip.import_().decoder()
    assert (clip.imported / record.file).samefile(clip.decoder)
    assert record.sha256 == clip.bundle.decoder().sha256
    shutil.rmtree(clip.imported)
    assert clip.import_(copy=True).decoder() == record
    assert not (clip.imported / record.file).samefile(clip.decoder)
    assert (clip.imported / record.file).read_bytes() == clip.decoder.read_bytes()


def test_progress_comes_to_its_end(clip: Made) -> None:
    for copy in (False, True):
        shutil.rmtree(clip.imported, ignore_errors=True)
        events: list[Event] = []
        clip.import_(copy=copy, vision=["float32", "int8"], on_event=events.append)
        (plan,) = (event for event in events if isinstance(event, Planned))
        last = [event for event in events if isinstance(event, Progress)][-1]
        assert last.bytes_written == last.bytes_total == plan.bytes_needed
        assert last.tensors_written == last.tensors_total


def test_a_decoder_that_says_no_type_is_named_after_its_weights(clip: Made, tmp_path: Path) -> None:
    nameless = rewrite(clip.decoder, tmp_path / "decoder.gguf", metadata={"general.file_type": None})
    assert clip.import_(decoder=nameless).decoders.default == "F32"
    shutil.rmtree(clip.imported)
    other = rewrite(clip.decoder, tmp_path / "other.gguf", metadata={"general.file_type": u32(1024 + 30)})
    assert clip.import_(decoder=other).decoders.default == "IQ4_XS"
    assert not verify_bundle(clip.imported).problems


def test_llava_1_5_of_the_first_hour(tmp_path: Path) -> None:
    """A Llama decoder without a template, and without a token for pictures."""
    checkpoint = TinyCheckpoint(decoder="llama", activation="quick_gelu", image_size=42)
    made = Made(checkpoint.write(tmp_path / "checkpoint"), tmp_path)
    old = {
        "tokenizer.chat_template": None,
        "tokenizer.ggml.add_bos_token": None,
        "general.name": string("Old"),
    }
    decoder = rewrite(made.decoder, tmp_path / "decoder.gguf", metadata=old)
    with pytest.raises(CheckpointError, match=r"no chat template: give a chat_template_file.*vicuna"):
        made.import_(decoder=decoder)
    from acestep_gguf.convert.llama_cpp.gguf_prompt import CHAT_TEMPLATES

    bundle = made.import_(decoder=decoder, chat_template=CHAT_TEMPLATES["vicuna"], image_token="<picture>")
    assert bundle.prompt.image_token == "<picture>"
    assert "<picture>" not in bundle.prompt.control_tokens
    assert bundle.prompt.add_bos
    with AceStep(made.imported, n_threads=1, n_ctx=256) as model:
        answer = model.generate("Is <picture> here?", images=[drawing((9, 8), 5)], max_tokens=4)
    assert answer.usage.image_tokens == bundle.tower()[1].n_image_tokens


Change = Callable[[Tensors], Tensors]


def without(name: str) -> Change:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def plus(name: str, *shape: int) -> Change:
    return lambda tensors: {**tensors, name: np.zeros(shape, np.float32)}


@pytest.mark.parametrize(
    ("metadata", "change", "problem"),
    [
        ({"general.architecture": string("qwen2")}, None, "'qwen2' model and no mmproj"),
        ({"clip.projector_type": string("ldpv2")}, None, "'ldpv2': supported are 'mlp' and 'internvl'"),
        ({"clip.projector_type": None}, None, "None: supported are"),
        ({"clip.has_vision_encoder": None}, None, "no vision encoder"),
        ({"clip.use_gelu": None, "clip.use_silu": boolean(True), **OURS}, None, "silu"),
        ({"clip.vision.image_grid_pinpoints": i32s([336, 672])}, None, r"tiles \(LLaVA 1.6\)"),
        ({"clip.vision.block_count": None}, None, "block_count is missing"),
        ({"clip.vision.block_count": u32(2**31)}, None, "damaged"),
        ({"clip.vision.image_size": u32(56)}, None, "'v.position_embd.weight' has the shape"),
        ({"clip.vision.patch_size": u32(0)}, None, "damaged"),
        ({"clip.vision.attention.head_count": u32(5)}, None, "num_attention_heads"),
        ({"clip.vision.feature_layer": i32s([3])}, None, "not among the tower's layers"),
        ({"clip.vision.image_mean": None, **OURS}, None, "how to prepare pictures"),
        ({"acestep_gguf.vision.image": string("{}")}, None, "how to prepare pictures"),
        ({"acestep_gguf.hidden_act": string("swish")}, None, "'swish' is not supported"),
        ({}, without("v.blk.1.attn_v.bias"), "'v.blk.1.attn_v.bias' is missing"),
        ({}, without("mm.2.weight"), "'mm.2.weight' is missing"),
        ({}, plus("v.blk.0.attn_qkv.weight", 192, 64), "which LLaVA has no use for"),
        ({}, plus("v.post_ln.weight", 64), "which LLaVA has no use for"),
        ({}, plus("mm.3.weight", 64), "'mlp_norm'"),
        ({}, lambda tensors: {**tensors, "mm.0.bias": np.zeros(3, np.float32)}, "has the shape"),
    ],
)
def test_other_mmproj_files_are_refused(
    clip: Made, tmp_path: Path, metadata: dict[str, bytes | None], change: Change | None, problem: str
) -> None:
    path = tmp_path / "mmproj.gguf"
    rewrite(clip.mmproj, path, metadata=metadata, change=change or (lambda tensors: tensors))
    with pytest.raises(AceStepError, match=problem) as raised:
        clip.import_(mmproj=path)
    assert isinstance(raised.value, BundleError | UnsupportedModelError)
    assert "\n" not in str(raised.value)
    assert not clip.imported.exists()


def test_files_that_do_not_go_together_are_refused(clip: Made, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="'qwen2' model and no mmproj: give DECODER"):
        clip.import_(decoder=clip.mmproj, mmproj=clip.decoder)
    other = Made(TinyCheckpoint(hidden_size=512).write(tmp_path / "checkpoint"), tmp_path)
    with pytest.raises(BundleError, match=r"256 numbers, .* takes 512: give two files of one model"):
        clip.import_(decoder=other.decoder)


def test_a_folder_that_is_not_empty_stays_as_it_is(clip: Made) -> None:
    before = sorted(path.name for path in clip.out.iterdir())
    with pytest.raises(BundleError, match="is a bundle already"):
        import_gguf(clip.decoder, clip.out, mmproj=clip.mmproj)
    assert sorted(path.name for path in clip.out.iterdir()) == before
    clip.imported.mkdir()
    (clip.imported / "mine.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"holds mine\.txt"):
        clip.import_()


def test_damaged_weights_leave_nothing_behind(clip: Made, tmp_path: Path) -> None:
    path = tmp_path / "mmproj.gguf"
    content = bytearray(clip.mmproj.read_bytes())
    offset = next(tensor.offset for tensor in read_gguf_header(clip.mmproj).tensors if "ln1" in tensor.name)
    content[offset : offset + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(content)
    with pytest.raises(BundleError, match="NaN or infinite"):
        clip.import_(mmproj=path)
    assert not clip.imported.exists()


@pytest.mark.parametrize("decoder", ["qwen2", "llama"])
def test_a_decoder_alone_answers_about_text(decoder: Literal["qwen2", "llama"], tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint(decoder=decoder, has_tower=False).write(tmp_path / "checkpoint")
    made = convert_checkpoint(checkpoint, tmp_path / "bundle", ["F32"], name="Tiny")
    imported = tmp_path / "imported"
    events: list[Event] = []
    bundle = import_gguf(tmp_path / "bundle" / made.decoder().file, imported, on_event=events.append)
    assert (bundle.vision, bundle.image, bundle.prompt.image_token) == (None, None, None)
    assert (bundle.source.vision_model_type, bundle.source.text_model_type) == (None, decoder)
    assert (bundle.name, bundle.decoder()) == ("Tiny", made.decoder())
    (plan,) = (event for event in events if isinstance(event, Planned))
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert last.bytes_written == last.bytes_total == plan.bytes_needed
    assert not verify_bundle(imported).problems
    assert {path.name for path in imported.iterdir()} == {"bundle.json", made.decoder().file}
    answers = []
    for folder in (tmp_path / "bundle", imported):
        with AceStep(folder, n_threads=1, n_ctx=128) as model:
            answers.append(model.generate("What is <image>?", max_tokens=8).tokens)
            with pytest.raises(PromptError, match="has no vision tower: ask without pictures"):
                model.generate("What is this?", images=[drawing((9, 8), 5)])
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "option", [{"image_token": "<image>"}, {"vision": ["int8"]}, {"calibration": Path("pictures")}]
)
def test_a_decoder_alone_takes_no_options_about_pictures(
    decoder_file: Path, tmp_path: Path, option: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(option))} is about pictures.*give the mmproj file"):
        import_gguf(decoder_file, tmp_path / "imported", **option)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"general.architecture": string("gemma3")}, "is a 'gemma3' model: only qwen2, qwen3, llama"),
        ({"general.architecture": string("\x1b" * 10**6)}, "is a '.{160}' model"),
        ({"qwen2.expert_count": u32(8)}, "makes it another model"),
        ({"tokenizer.ggml.model": string("bert")}, "has a 'bert' tokenizer: only byte-level BPE"),
        (
            {"tokenizer.ggml.pre": string("gpt-4o")},
            "as 'gpt-4o' does: only llama-bpe, pixtral, qwen2, smollm",
        ),
        ({"general.name": string("n" * 10**6)}, "is not a printable text of at most 200 characters"),
        ({"split.count": u32(3)}, "part of a split file"),
    ],
)
def test_other_decoders_are_refused_by_name(
    decoder_file: Path, tmp_path: Path, metadata: dict[str, bytes | None], problem: str
) -> None:
    path = rewrite(decoder_file, tmp_path / "decoder.gguf", metadata=metadata)
    with pytest.raises(AceStepError, match=problem) as raised:
        import_gguf(path, tmp_path / "imported")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000
    assert not (tmp_path / "imported").exists()


def test_internvl_as_others_write_it(tmp_path: Path) -> None:
    """Layer scale by itself, axes of one element, and positions in the order in which they are added."""
    tiny = TinyInternVL(dtype="F32", has_biases=True, activation="gelu", max_patches=5)
    made = Made(tiny.write(tmp_path / "checkpoint"), tmp_path)
    scaled = {"ls1": ("lambda_1", "attn_out"), "ls2": ("lambda_2", "ffn_down")}

    def as_theirs(tensors: Tensors) -> Tensors:
        weights = tiny.tensors()
        for bid in range(tiny.vision_n_layers):
            for own, (theirs, layer) in scaled.items():
                factors = weights[f"vision_tower.encoder.layer.{bid}.{theirs}"]
                tensors[f"v.blk.{bid}.{own}.weight"] = factors
                tensors[f"v.blk.{bid}.{layer}.weight"] /= factors[:, np.newaxis]
                tensors[f"v.blk.{bid}.{layer}.bias"] /= factors
        positions = np.roll(tensors["v.position_embd.weight"], 1, axis=0)
        return tensors | {"v.position_embd.weight": positions[np.newaxis]}

    keys = {**OURS, CLASS_TOKEN_LAST_KEY: None}
    foreign = rewrite(made.mmproj, tmp_path / "mmproj.gguf", metadata=keys, change=as_theirs)
    imported = made.import_(mmproj=foreign)
    assert imported.image is not None
    assert made.bundle.image is not None
    assert imported.image.tiles == made.bundle.image.tiles
    assert imported.image.mean == pytest.approx(made.bundle.image.mean, abs=1e-6)
    assert (imported.prompt.image_token, imported.prompt.image_begin) == ("<IMG_CONTEXT>", "<img>")
    image = drawing((56, 56), 0)
    # llama.cpp's GELU is the approximation with tanh.
    assert relative_error(embeds(made.imported, image), embeds(made.out, image)) < 2e-3


def test_internvl_with_another_decoder_is_refused(clip: Made, tmp_path: Path) -> None:
    made = Made(TinyInternVL().write(tmp_path / "checkpoint"), tmp_path)
    with pytest.raises(BundleError, match="no decoder of InternVL"):
        clip.import_(mmproj=made.mmproj, image_token="<image>")


@pytest.mark.parametrize("is_ours", [True, False])
def test_smolvlm_has_the_tokens_of_its_decoder_between_tiles(tmp_path: Path, is_ours: bool) -> None:
    made = Made(TinySmolVLM(decoder="smollm", dtype="F32").write(tmp_path / "checkpoint"), tmp_path)
    mmproj = made.mmproj if is_ours else rewrite(made.mmproj, tmp_path / "mmproj.gguf", metadata=OURS)
    imported = made.import_(mmproj=mmproj)
    assert imported.image is not None
    assert made.bundle.image is not None
    assert imported.image.tiles == made.bundle.image.tiles
    assert imported.min_reader_version == 4
    assert (imported.image.resample, imported.image.resize) == ("lanczos", "exact")
    image = drawing((64, 96), 0)
    assert relative_error(embeds(made.imported, image), embeds(made.out, image)) < 1e-5


def test_smolvlm_with_another_decoder_is_refused(clip: Made, tmp_path: Path) -> None:
    made = Made(TinySmolVLM(decoder="smollm").write(tmp_path / "checkpoint"), tmp_path)
    with pytest.raises(CheckpointError, match="the tokenizer has no token <fake_token_around_image>"):
        clip.import_(mmproj=made.mmproj)
