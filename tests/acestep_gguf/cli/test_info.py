"""``info``."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.quality.bundled import write_into_bundle
from acestep_gguf.quality.report import PictureQuestion, QualityReport
from tests.acestep_gguf.quality.reports import candidate
from tests.support.command_line import acestep
from tests.support.tiny_checkpoints import TinyCheckpoint
from tests.support.tiny_idefics2 import TinyIdefics2


def test_info_as_table_and_as_json(tiny_bundle: Path) -> None:
    table = acestep("info", tiny_bundle).stdout
    for word in ("Q4_K_M", "Q8_0", "F32", "bits/weight", "28 x 28", "512 tokens", "float32", "default"):
        assert word in table
    facts = json.loads(acestep("info", tiny_bundle, "--json").stdout)
    assert facts["context_length"] == 512
    assert facts["image"] == {"height": 28, "width": 28, "tokens": 4, "tiles": None}
    assert {decoder["ftype"]: decoder["default"] for decoder in facts["decoders"]} == {
        "Q4_K_M": True,
        "Q8_0": False,
        "F32": False,
    }


def test_info_tells_how_large_crops_are(tmp_path: Path) -> None:
    checkpoint = TinyIdefics2(decoder="mistral").write(tmp_path / "checkpoint")
    convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"], vision=["float32"])
    assert "in crops of up to 56 x 56 pixels, 6 tokens each" in acestep("info", tmp_path / "bundle").stdout


def test_info_shows_what_was_measured(bundle_copy: Path) -> None:
    assert json.loads(acestep("info", bundle_copy, "--json").stdout)["quality"] is None
    measured = QualityReport(
        bundle="Tiny",
        asked=(PictureQuestion(picture="a.png", question="What?"),) * 3,
        candidates=(candidate("F32", "a"), candidate("Q4_K_M\x1b[2J", "b", divergence=0.0123)),
    )
    write_into_bundle(bundle_copy, measured)
    table = acestep("info", bundle_copy).stdout
    assert "against F32, float32, over 3 questions about pictures" in table
    assert "Q4_K_M?[2J, float32  KL divergence 1.2e-02  same token 97.5%" in table
    quality = json.loads(acestep("info", bundle_copy, "--json").stdout)["quality"]
    assert quality["n_questions"] == 3
    assert quality["candidates"][1]["kl_divergence"]["mean"]["value"] == 0.0123
    assert "answers" not in quality["candidates"][1]


def test_info_shows_how_close_int8_comes(bundle_copy: Path) -> None:
    bundle = Bundle.read(bundle_copy)
    record = bundle.vision_file("int8")
    assert record.centred_cosine_to_float32 is not None
    cosines = f"cosine {record.cosine_to_float32:.4f}"
    centred = f", {record.centred_cosine_to_float32:.4f} centred"
    assert cosines + centred in acestep("info", bundle_copy).stdout
    towers = json.loads(acestep("info", bundle_copy, "--json").stdout)["vision"]
    assert towers[1]["centred_cosine_to_float32"] == record.centred_cosine_to_float32
    assert towers[1]["min_centred_cosine_to_float32"] == record.min_centred_cosine_to_float32

    assert bundle.vision is not None
    older = replace(record, centred_cosine_to_float32=None, min_centred_cosine_to_float32=None)
    files = bundle.vision.files | {"int8": older}
    replace(bundle, vision=replace(bundle.vision, files=files)).write(bundle_copy)
    table = acestep("info", bundle_copy).stdout
    assert cosines in table
    assert cosines + centred not in table


def test_info_shows_int8_layers(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint(has_tower=False).write(tmp_path / "checkpoint")
    record = convert_checkpoint(checkpoint, tmp_path / "bundle", ("F32",), prefill=True).prefill
    assert record is not None
    assert "int8, reads long prompts" in acestep("info", tmp_path / "bundle").stdout
    prefill = json.loads(acestep("info", tmp_path / "bundle", "--json").stdout)["prefill"]
    assert prefill == {"file": record.file, "bytes": record.bytes + record.data.bytes}


def test_info_loads_neither_llama_cpp_nor_onnxruntime(tiny_bundle: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from acestep_gguf.cli.info import info\n"
        "info(Path(sys.argv[1]), as_json=True)\n"
        "print({'numpy', 'llama_cpp', 'onnxruntime', 'PIL', 'jinja2'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tiny_bundle], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("}\nset()\n")
