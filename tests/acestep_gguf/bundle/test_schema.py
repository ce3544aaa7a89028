import base64
import contextlib
import json
import os
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_gguf.bundle.schema import Bundle, FileRecord, ReferenceEmbeds, check_file
from acestep_gguf.errors import BundleError, PromptError

VALID: dict[str, Any] = {
    "schema_version": 1,
    "min_reader_version": 1,
    "name": "Demo",
    "source": {
        "architecture": "LlavaForConditionalGeneration",
        "vision_model_type": "clip_vision_model",
        "text_model_type": "qwen2",
        "config_sha256": "0" * 64,
        "weights_sha256": "1" * 64,
    },
    "decoders": {
        "default": "Q4_K_M",
        "files": {
            "Q4_K_M": {"file": "Demo-6M-Q4_K_M.gguf", "bytes": 10, "sha256": "a" * 64, "bits_per_weight": 4.9}
        },
    },
    "vision": {
        "default": "float32",
        "files": {
            "float32": {
                "file": "vision-float32.onnx",
                "bytes": 10,
                "sha256": "b" * 64,
                "data": {"file": "vision-float32.onnx.data", "bytes": 10, "sha256": "c" * 64},
                "cosine_to_float32": 1.0,
            }
        },
    },
    "image": {
        "pad_to_square": None,
        "resize": "shortest_edge",
        "resize_to": {"height": 112, "width": 112},
        "resample": "bicubic",
        "center_crop": {"height": 112, "width": 112},
        "rescale_factor": 0.00392156862745098,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "size": {"height": 112, "width": 112},
        "n_image_tokens": 64,
        "n_embd": 256,
    },
    "prompt": {
        "image_token": "<image>",
        "chat_template": "{{ messages[0].content }}",
        "template_tokens": {},
        "control_tokens": {"<image>": 3, "<|im_end|>": 2},
        "user_defined_tokens": {},
        "stop_tokens": ["<|im_end|>"],
        "normalizer": "NFC",
    },
}


def write(folder: Path, raw: object) -> None:
    (folder / "bundle.json").write_text(json.dumps(raw))


def changed(path: str, value: object) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(json.dumps(VALID))
    *parents, last = path.split(".")
    node = raw
    for name in parents:
        node = node[name]
    node[last] = value
    return raw


def test_reads_back_what_it_wrote(tmp_path: Path) -> None:
    write(tmp_path, VALID)
    bundle = Bundle.read(tmp_path)
    (tmp_path / "bundle.json").unlink()
    bundle.write(tmp_path)
    assert Bundle.read(tmp_path) == bundle
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.json"]
    assert bundle.decoder().file == "Demo-6M-Q4_K_M.gguf"
    assert [record.file for record in bundle.records()] == [
        "Demo-6M-Q4_K_M.gguf",
        "vision-float32.onnx",
        "vision-float32.onnx.data",
    ]


@pytest.mark.parametrize("name", [".a.gguf.partial", ".a.gguf.journal", ".acestep-gguf.lock"])
def test_an_interrupted_conversion_is_no_bundle_yet(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(BundleError, match="the same `acestep-gguf convert` command carries"):
        Bundle.read(tmp_path)
    (tmp_path / name).rename(tmp_path / "other")
    with pytest.raises(BundleError, match="check the path"):
        Bundle.read(tmp_path)
    write(tmp_path, VALID)
    (tmp_path / "other").rename(tmp_path / name)
    assert Bundle.read(tmp_path).name == "Demo"


def test_a_bundle_without_a_tower(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            **VALID,
            "vision": None,
            "image": None,
            "prompt": {**VALID["prompt"], "image_token": None},
            "source": {**VALID["source"], "vision_model_type": None},
        },
    )
    bundle = Bundle.read(tmp_path)
    assert [record.file for record in bundle.records()] == ["Demo-6M-Q4_K_M.gguf"]
    with pytest.raises(PromptError, match="has no vision tower: ask without pictures"):
        bundle.tower()


@pytest.mark.parametrize("text", ["a\x1b[2Jb", "a\nb", "a\x9bb", "a\u202eb"])
@pytest.mark.parametrize(
    "place",
    [
        ("name",),
        ("source", "architecture"),
        ("source", "quantization"),
        ("decoders", "files", "Q4_K_M", "file"),
    ],
)
def test_texts_that_would_do_more_than_stand_on_a_terminal(
    tmp_path: Path, text: str, place: tuple[str, ...]
) -> None:
    raw = json.loads(json.dumps(VALID))
    *path, key = place
    reduce(dict.__getitem__, path, raw)[key] = text
    write(tmp_path, raw)
    with pytest.raises(BundleError, match="cannot be printed") as caught:
        Bundle.read(tmp_path)
    assert str(caught.value).isprintable()


def test_files_for_llama_cpp_and_a_place_for_pictures_outside_of_the_vocabulary(tmp_path: Path) -> None:
    file = {"file": "mmproj-Demo-F16.gguf", "bytes": 5, "sha256": "0" * 64}
    prompt = {**VALID["prompt"], "image_token": "<no token>"}
    write(tmp_path, {**VALID, "mmproj": {"F16": file}, "prompt": prompt})
    assert [record.file for record in Bundle.read(tmp_path).records()][-1] == "mmproj-Demo-F16.gguf"


def test_unknown_fields_of_a_later_minor_version_are_ignored(tmp_path: Path) -> None:
    write(tmp_path, {**VALID, "schema_version": 99, "something_new": [1]})
    assert Bundle.read(tmp_path).name == "Demo"


def test_a_bundle_that_needs_a_newer_reader_is_refused(tmp_path: Path) -> None:
    write(tmp_path, changed("min_reader_version", 99))
    with pytest.raises(BundleError, match=r"needs schema version 99.*pip install -U"):
        Bundle.read(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("decoders.files.Q4_K_M.file", "../../etc/passwd", "not a bare file name"),
        ("vision.files.float32.data.file", "/etc/passwd", "not a bare file name"),
        ("vision.files.float32.reference", {"token": -1, "direction": "AAA8"}, "must be a token and float16"),
        ("vision.files.float32.reference", {"token": 0, "direction": ""}, "must be a token and float16"),
        ("vision.files.float32.reference", {"token": 0, "direction": "AA=="}, "must be a token and float16"),
        ("decoders.files.Q4_K_M.file", "..", "not a bare file name"),
        ("decoders.files.Q4_K_M.bytes", 0, "claims 0 bytes"),
        ("decoders.default", "Q8_0", "not among the files"),
        ("decoders.default", "Q3_K_X", "decoders.default"),
        ("decoders.default", "Q3_K_S", "not among the files"),
        ("image.std", [0.5, 0.0, 0.5], "std positive"),
        ("image.std", [0.5, -0.5, 0.5], "std positive"),
        ("image.std", [0.5, 1e-300, 0.5], "std positive"),
        ("image.std", [0.5, 1e300, 0.5], "std positive"),
        ("image.mean", [0.5, -1e300, 0.5], "mean and std"),
        ("image.rescale_factor", 0.0, "rescale_factor"),
        ("image.rescale_factor", -1.0, "rescale_factor"),
        ("image.rescale_factor", 1e300, "rescale_factor"),
        ("image.size", {"height": 10**9, "width": 10**9}, "not a usable picture size"),
        ("image.n_image_tokens", -1, "must be positive"),
        ("image.resize_to", None, "go together"),
        ("image.resize", "longest_edge", "go together"),
        ("image.pad_to_square", [0, 0, 256], "is not a color"),
        ("prompt.stop_tokens", ["<|nothing|>"], "not among control_tokens"),
        ("prompt.normalizer", "NFKC", "prompt.normalizer"),
        ("vision", None, "go together"),
        ("image", None, "go together"),
        ("prompt.image_token", None, "go together"),
        ("source.vision_model_type", None, "go together"),
        ("name", 3, r"name"),
    ],
)
def test_a_contradiction_is_named(tmp_path: Path, path: str, value: object, why: str) -> None:
    write(tmp_path, changed(path, value))
    with pytest.raises(BundleError, match=why):
        Bundle.read(tmp_path)


@pytest.mark.parametrize("raw", [[], 3, {}, {"min_reader_version": "1"}, None])
def test_other_json_is_no_bundle(tmp_path: Path, raw: object) -> None:
    write(tmp_path, raw)
    with pytest.raises(BundleError, match=r"not a bundle\.json"):
        Bundle.read(tmp_path)


def test_missing_folder_missing_file_and_checkpoint_each_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a folder"):
        Bundle.read(tmp_path / "none")
    with pytest.raises(BundleError, match=r"has no bundle\.json: check the path\."):
        Bundle.read(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BundleError, match="run `acestep-gguf convert` first"):
        Bundle.read(tmp_path)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot be read \(File name too long\): check the path"):
        Bundle.read(tmp_path / ("x" * 5000))
    with pytest.raises(BundleError, match="not a folder"):
        Bundle.read(tmp_path / "nul\0name")


def test_a_fifo_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "bundle.json")
    with pytest.raises(BundleError, match=r"bundle\.json is not a file"):
        Bundle.read(tmp_path)


def test_decoders_are_named_in_any_case(tmp_path: Path) -> None:
    write(tmp_path, VALID)
    bundle = Bundle.read(tmp_path)
    assert bundle.decoder("q4_k_m") == bundle.decoder("Q4_K_M") == bundle.decoder()
    for unknown in ("", "q4_k", "Q8_0"):
        with pytest.raises(BundleError, match="choose from Q4_K_M"):
            bundle.decoder(unknown)


def test_deeply_nested_json_is_an_error_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text("[" * 200_000)
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle.read(tmp_path)


@given(damage=st.binary(max_size=8), at=st.integers(0, 2000), cut=st.integers(0, 40))
def test_damaged_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, damage: bytes, at: int, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("bundle")
    text = json.dumps(VALID).encode()
    (folder / "bundle.json").write_bytes(text[:at] + damage + text[at + cut :])
    with contextlib.suppress(BundleError):
        assert isinstance(Bundle.read(folder), Bundle)


def test_check_file_compares_the_size(tmp_path: Path) -> None:
    record = FileRecord(file="a.gguf", bytes=3, sha256="")
    with pytest.raises(BundleError, match="is missing"):
        check_file(tmp_path, record)
    (tmp_path / "a.gguf").write_bytes(b"ab")
    with pytest.raises(BundleError, match="has 2 bytes, not 3"):
        check_file(tmp_path, record)
    (tmp_path / "a.gguf").write_bytes(b"abc")
    assert check_file(tmp_path, record) == tmp_path / "a.gguf"


def test_a_tower_of_schema_version_1_and_one_of_now(tmp_path: Path) -> None:
    """Version 1 had one precision, and neither the least cosine nor a reference."""
    write(tmp_path, VALID)
    old = Bundle.read(tmp_path)
    assert (old.vision_file().min_cosine_to_float32, old.vision_file().reference) == (None, None)
    assert old.vision_file().centred_cosine_to_float32 is None
    assert old.vision_file().min_centred_cosine_to_float32 is None
    with pytest.raises(BundleError, match="no 'int8' tower: choose from float32, or `convert` with vision="):
        old.vision_file("INT8")
    with pytest.raises(BundleError, match=r"no 'float16' tower: choose from float32\.$"):
        old.vision_file("float16")
    with pytest.raises(BundleError, match=r"no decoder 'NONSENSE': choose from [A-Z0-9_, ]+\.$"):
        old.decoder("nonsense")

    now = changed("min_reader_version", 2)
    now["vision"]["files"]["int8"] = now["vision"]["files"]["float32"] | {
        "min_cosine_to_float32": 0.99,
        "reference": {"token": 3, "direction": base64.b64encode(b"\0\0\0\x3c").decode()},
    }
    write(tmp_path, now)
    bundle = Bundle.read(tmp_path)
    assert bundle.vision_file("int8").reference == ReferenceEmbeds(token=3, direction=b"\0\0\0\x3c")
    bundle.write(tmp_path)
    assert Bundle.read(tmp_path) == bundle
