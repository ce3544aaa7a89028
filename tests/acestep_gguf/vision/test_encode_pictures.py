import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.errors import BundleError, ImageError, PromptError, UsageError
from acestep_gguf.vision.embeds_file import SUFFIX, EmbedsFile
from acestep_gguf.vision.encode_pictures import Encoded, encode_pictures
from tests.support.pdf_files import BLUE, RED, pdf

PROGRAM = [sys.executable, "-m", "acestep_gguf.cli"]


@pytest.fixture
def encoded(tiny_bundle: Path, picture: Path, tmp_path: Path) -> Path:
    """A file of embeds of ``picture``."""
    (done,) = encode_pictures(tiny_bundle, [picture], tmp_path / "embeds", n_threads=1)
    return done.path


def test_embeds_answer_as_the_picture_does(model: AceStep, encoded: Path, picture: Path) -> None:
    expected = model.generate("What is this?", [picture, picture], max_tokens=12)
    answer = model.generate("What is this?", [EmbedsFile(encoded), picture], max_tokens=12)
    assert answer.text == expected.text
    assert answer.usage.image_tokens == expected.usage.image_tokens == 8


def test_another_picture_gives_other_embeds(tiny_bundle: Path, encoded: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "blue.png")
    (done,) = encode_pictures(tiny_bundle, [tmp_path / "blue.png"], tmp_path / "embeds", n_threads=1)
    bundle = Bundle.read(tiny_bundle)
    assert EmbedsFile(done.path).read(bundle).sha256 != EmbedsFile(encoded).read(bundle).sha256


def test_each_page_of_a_pdf_has_its_own_file(tiny_bundle: Path, tmp_path: Path) -> None:
    scan = tmp_path / "scan.pdf"
    scan.write_bytes(pdf((30, 30, RED), (30, 30, BLUE)))
    done = encode_pictures(tiny_bundle, [scan], tmp_path / "embeds", n_threads=1)
    names = [f"scan.pdf#page={number}{SUFFIX}" for number in (1, 2)]
    assert [one.path.name for one in done] == names


def test_the_tower_is_not_needed_to_answer(bundle_copy: Path, encoded: Path, picture: Path) -> None:
    for path in bundle_copy.glob("vision-*"):
        path.unlink()
    code = (
        "import sys; from acestep_gguf import AceStep, EmbedsFile\n"
        "with AceStep(sys.argv[1], n_threads=1) as model:\n"
        "    answer = model.generate('What is this?', [EmbedsFile(sys.argv[2])], max_tokens=4)\n"
        "print(answer.usage.image_tokens, 'onnxruntime' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(bundle_copy), str(encoded)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "4 False\n"
    with AceStep(bundle_copy, n_threads=1) as model, pytest.raises(BundleError, match="is missing"):
        model.generate("What is this?", [picture])


def test_fewer_image_tokens_work_with_embeds_too(tiny_bundle: Path, encoded: Path, picture: Path) -> None:
    texts = set()
    with AceStep(tiny_bundle, quant="F32", n_threads=1, image_tokens=2) as model:
        for image in (picture, EmbedsFile(encoded)):
            answer = model.generate("What is this?", [image], max_tokens=12)
            assert answer.usage.image_tokens == 2
            texts.add(answer.text)
    with AceStep(tiny_bundle, quant="F32", n_threads=1, image_tokens=99) as model:
        answer = model.generate("What is this?", [picture], max_tokens=12)
        assert answer.usage.image_tokens == 4
        texts.add(answer.text)
    assert len(texts) == 2
    for n in (0, -1, "all"):
        with pytest.raises(UsageError, match="image_tokens"):
            AceStep(tiny_bundle, image_tokens=n)


def test_the_same_call_carries_on(tiny_bundle: Path, encoded: Path, picture: Path) -> None:
    before = encoded.stat().st_mtime_ns
    again = list(encode_pictures(tiny_bundle, [picture], encoded.parent, n_threads=1))
    assert again == [Encoded(encoded, 4, None)]
    assert encoded.stat().st_mtime_ns == before


def test_what_is_in_the_way_stays_unless_forced(tiny_bundle: Path, encoded: Path, picture: Path) -> None:
    Image.new("RGB", (9, 9), "blue").save(picture)
    with pytest.raises(ImageError, match=r"of another picture.*force=True"):
        list(encode_pictures(tiny_bundle, [picture], encoded.parent, n_threads=1))
    other = encoded.read_bytes()
    (done,) = encode_pictures(tiny_bundle, [picture], encoded.parent, n_threads=1, force=True)
    assert done.path.read_bytes() != other
    with pytest.raises(ImageError, match="or tower"):
        list(encode_pictures(tiny_bundle, [picture], encoded.parent, n_threads=1, vision="FLOAT32"))
    encoded.write_text("mine")
    with pytest.raises(ImageError, match="replace it: force=True"):
        list(encode_pictures(tiny_bundle, [picture], encoded.parent, n_threads=1))
    assert encoded.read_text() == "mine"


def test_two_pictures_of_one_name(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    other = shutil.copy(picture, tmp_path / "more")
    with pytest.raises(UsageError, match="two folders"):
        list(encode_pictures(tiny_bundle, [picture, Path(other)], tmp_path / "out", n_threads=1))
    assert not (tmp_path / "out").exists()
    twice = list(encode_pictures(tiny_bundle, [picture, picture], tmp_path / "out", n_threads=1))
    assert [done.seconds is None for done in twice] == [False, True]


def test_a_bundle_without_a_tower(tiny_bundle: Path, encoded: Path, tmp_path: Path) -> None:
    bundle = Bundle.read(tiny_bundle)
    assert bundle.vision is not None
    shutil.copytree(tiny_bundle, tmp_path / "blind")
    raw = (tmp_path / "blind" / "bundle.json").read_bytes()
    facts = msgspec.json.decode(raw)
    facts["vision"] = facts["image"] = facts["prompt"]["image_token"] = None
    facts["source"]["vision_model_type"] = None
    (tmp_path / "blind" / "bundle.json").write_bytes(msgspec.json.encode(facts))
    with pytest.raises(PromptError, match="no vision tower"):
        list(encode_pictures(tmp_path / "blind", [encoded], tmp_path / "out"))
    with AceStep(tmp_path / "blind", n_threads=1) as model, pytest.raises(PromptError, match="no vision"):
        model.generate("What is this?", [EmbedsFile(encoded)])


@pytest.mark.slow
def test_from_the_command_line(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [*PROGRAM, *map(str, arguments), "-t", "1"]
        env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=env)

    out = tmp_path / "embeds"
    done = run("encode", tiny_bundle, picture, "-o", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{out / 'picture.png.safetensors'}  4 tokens  ")
    question = ("run", tiny_bundle, "What is this?", "-n", 8, "--no-cache")
    done = run(*question, "--embeds", out / "picture.png.safetensors")
    assert done.returncode == 0
    assert "(4 of pictures" in done.stderr
    wrong = run(*question, "--embeds", picture)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.splitlines()[-1].startswith(f"error: {picture} is not a file of image embeds")
    assert wrong.stderr.count("error: ") == 1
    missing = run("encode", tiny_bundle, tmp_path / "none", "-o", out)
    assert missing.returncode == 1
    assert missing.stderr.count("\n") == 1
