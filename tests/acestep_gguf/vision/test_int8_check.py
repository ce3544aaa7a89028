import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from acestep_gguf.bundle.schema import Bundle, ReferenceEmbeds
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.errors import BundleError, PromptError
from acestep_gguf.storage.cache_folder import cache_folder
from acestep_gguf.vision.embeds import centred_cosines, cosines
from acestep_gguf.vision.int8_check import (
    is_right,
    known_precision,
    reference_embeds,
    reference_pixel_values,
    vision_precision,
)
from acestep_gguf.vision.tower import VisionTower


@pytest.fixture
def verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a machine on which nothing was checked yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder() / "vision-checks"


def spoil(folder: Path) -> None:
    """Turn all int8 weights around: numbers stay finite and become wrong, as after an overflow."""
    graph = onnx.load(folder / "vision-int8.onnx", load_external_data=False).graph
    path = folder / "vision-int8.onnx.data"
    data = np.frombuffer(path.read_bytes(), np.int8).copy()
    for weight in graph.initializer:
        if weight.data_type == onnx.TensorProto.INT8:
            place = {entry.key: entry.value for entry in weight.external_data}
            data[int(place["offset"]) :][: int(place["length"])] *= -1
    path.write_bytes(data.tobytes())


def without(bundle: Bundle, precision: str) -> Bundle:
    vision, _ = bundle.tower()
    files = {name: file for name, file in vision.files.items() if name != precision}
    return replace(bundle, vision=replace(vision, default=next(iter(files)), files=files))


def text_only(bundle: Bundle) -> Bundle:
    return replace(
        bundle,
        vision=None,
        image=None,
        prompt=replace(bundle.prompt, image_token=None),
        source=replace(bundle.source, vision_model_type=None),
    )


def test_a_machine_is_checked_once(bundle_copy: Path, verdicts: Path) -> None:
    bundle = Bundle.read(bundle_copy)
    assert vision_precision(bundle_copy, bundle) == "int8"
    assert len(list(verdicts.iterdir())) == 1
    (bundle_copy / "vision-int8.onnx").unlink()  # it is not looked at again
    with warnings.catch_warnings(action="error"):
        assert vision_precision(bundle_copy, bundle) == "int8"


def test_float32_needs_no_check(bundle_copy: Path, verdicts: Path) -> None:
    assert vision_precision(bundle_copy, Bundle.read(bundle_copy), "float32") == "float32"
    assert not verdicts.exists()


def test_wrong_numbers_are_told_and_float32_takes_over(
    bundle_copy: Path, picture: Path, verdicts: Path
) -> None:
    bundle = Bundle.read(bundle_copy)
    spoil(bundle_copy)
    for wanted in (None, "int8"):
        with pytest.warns(UserWarning, match=r"vision-int8\.onnx gives wrong numbers .* float32 tower takes"):
            assert vision_precision(bundle_copy, bundle, wanted) == "float32"
    with AceStep(bundle_copy, vision="float32", n_threads=1, n_ctx=256) as model:
        expected = model.generate("What is this?", [picture], max_tokens=4)
    with (
        pytest.warns(UserWarning, match="wrong numbers"),
        AceStep(bundle_copy, n_threads=1, n_ctx=256) as model,
    ):
        assert model.generate("What is this?", [picture], max_tokens=4).text == expected.text


@pytest.mark.parametrize("known", [False, True])
def test_the_plan_is_made_for_the_tower_that_runs(bundle_copy: Path, verdicts: Path, known: bool) -> None:
    spoil(bundle_copy)
    assert known_precision(bundle_copy, Bundle.read(bundle_copy)) == "int8"
    if known:
        with pytest.warns(UserWarning, match="wrong numbers"):
            vision_precision(bundle_copy, Bundle.read(bundle_copy))
    with (
        pytest.warns(UserWarning, match="wrong numbers"),
        AceStep(bundle_copy, n_threads=1, n_ctx=256) as model,
    ):
        assert model.settings.vision == "float32"
    with (
        pytest.warns(UserWarning, match="wrong numbers"),
        AceStep(bundle_copy, vision="float32", n_threads=1, n_ctx=256, draft=bundle_copy) as model,
    ):
        assert getattr(model.plan.draft, "vision", None) == "float32"
    assert known_precision(bundle_copy, Bundle.read(bundle_copy)) == "float32"


def test_the_command_line_tells_it_in_one_line(bundle_copy: Path, picture: Path, verdicts: Path) -> None:
    spoil(bundle_copy)
    arguments = ["run", bundle_copy, "What is this?", "--image", picture, "-n", "4", "-t", "1"]
    run = subprocess.run(
        [sys.executable, "-m", "acestep_gguf.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = (line for line in run.stderr.splitlines() if "wrong numbers" in line)
    assert line.startswith("warning: ")
    assert line.endswith("the float32 tower takes its place.")


def test_wrong_numbers_without_float32_are_an_error(bundle_copy: Path, verdicts: Path) -> None:
    spoil(bundle_copy)
    for _ in range(2):
        with pytest.raises(BundleError, match=r"add the float32 tower, `convert` with vision=float32\."):
            vision_precision(bundle_copy, without(Bundle.read(bundle_copy), "float32"))


def test_another_bundle_is_checked_anew(bundle_copy: Path, verdicts: Path) -> None:
    bundle = Bundle.read(bundle_copy)
    vision_precision(bundle_copy, bundle)
    bundle.write(bundle_copy)
    vision_precision(bundle_copy, bundle)
    assert len(list(verdicts.iterdir())) == 1
    replace(bundle, name="Other").write(bundle_copy)
    vision_precision(bundle_copy, bundle)
    assert len(list(verdicts.iterdir())) == 2


def test_a_damaged_verdict_and_a_folder_that_cannot_be_written(bundle_copy: Path, verdicts: Path) -> None:
    bundle = Bundle.read(bundle_copy)
    vision_precision(bundle_copy, bundle)
    (verdict,) = verdicts.iterdir()
    verdict.write_bytes(b"ye")
    assert vision_precision(bundle_copy, bundle) == "int8"
    assert verdict.read_bytes() == b"yes\n"
    verdict.unlink()
    verdicts.rmdir()
    verdicts.write_bytes(b"a file")
    assert vision_precision(bundle_copy, bundle) == "int8"


def test_what_a_bundle_does_not_have(bundle_copy: Path, verdicts: Path) -> None:
    bundle = Bundle.read(bundle_copy)
    with pytest.raises(BundleError, match=r"no 'int8' tower: choose from float32"):
        vision_precision(bundle_copy, without(bundle, "int8"), "int8")
    with pytest.raises(PromptError, match="no vision tower"):
        vision_precision(bundle_copy, text_only(bundle))


def test_once_it_was_checked_onnxruntime_is_not_imported(bundle_copy: Path, verdicts: Path) -> None:
    """The name is part of the key under which embeds are kept."""
    code = (
        "import sys; from pathlib import Path; from acestep_gguf.bundle.schema import Bundle;"
        "from acestep_gguf.vision.int8_check import vision_precision;"
        f"folder = Path({str(bundle_copy)!r}); print(vision_precision(folder, Bundle.read(folder)));"
        "print('onnxruntime' in sys.modules)"
    )
    for imported in ("True", "False"):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert run.stdout.split() == ["int8", imported]


def test_the_reference_picture_is_the_same_everywhere(tiny_bundle: Path) -> None:
    _, image = Bundle.read(tiny_bundle).tower()
    pixels = reference_pixel_values(image)
    assert pixels.dtype == np.float32
    assert pixels.shape == (1, 3, image.size.height, image.size.width)
    values = (pixels[0] * np.reshape(image.std, (3, 1, 1)) + np.reshape(image.mean, (3, 1, 1))) * 2
    assert values.min() >= -1e-6
    assert values.max() <= 2 + 1e-6
    # The first pixels of the first channel are noise alone: multiples of Knuth's number.
    noise = [i * 2654435761 % 2**32 / 2**32 for i in range(5)]
    np.testing.assert_allclose(values[0, 0, :5], noise, atol=1e-6)


def test_how_close_a_tower_has_to_come(tiny_bundle: Path) -> None:
    generator = np.random.default_rng(0)
    exact = generator.standard_normal((4, 256)).astype(np.float32)
    reference = reference_embeds(exact)
    assert reference.token == 2
    record = replace(Bundle.read(tiny_bundle).vision_file("int8"), min_cosine_to_float32=0.999)

    def at(cosine: float) -> np.ndarray:
        other = generator.standard_normal(256)
        direction = exact[2] / np.linalg.norm(exact[2])
        other -= other @ direction * direction
        embeds = exact.copy()
        embeds[2] = 3 * (cosine * direction + np.sqrt(1 - cosine**2) * other / np.linalg.norm(other))
        return embeds

    assert is_right(exact, reference, record)
    assert is_right(at(0.998), reference, record)
    assert not is_right(at(0.99), reference, record)
    assert not is_right(-exact, reference, record)
    with pytest.raises(BundleError, match="does not fit"):
        is_right(exact[:2], reference, record)
    with pytest.raises(BundleError, match="does not fit"):
        is_right(exact, ReferenceEmbeds(token=2, direction=b"\0\0"), record)


def test_what_is_recorded_is_what_the_files_compute(tiny_bundle: Path) -> None:
    """Calibration runs layer by layer; the reference picture is one of those that it measured."""
    bundle = Bundle.read(tiny_bundle)
    _, image = bundle.tower()
    pixels = reference_pixel_values(image)
    exact, quantized = (
        VisionTower(tiny_bundle, bundle, precision, n_threads=1).encode(pixels).embeds
        for precision in ("float32", "int8")
    )
    record = bundle.vision_file("int8")
    assert record.min_cosine_to_float32 is not None
    assert record.reference is not None
    assert 0.99 < record.min_cosine_to_float32 <= cosines(quantized, exact).min() + 1e-5
    assert record.min_centred_cosine_to_float32 is not None
    assert 0.9 < record.min_centred_cosine_to_float32 <= centred_cosines(quantized, exact).min() + 1e-5
    assert record.centred_cosine_to_float32 is not None
    assert record.min_centred_cosine_to_float32 < record.centred_cosine_to_float32 < record.cosine_to_float32
    direction = np.frombuffer(record.reference.direction, "<f2").astype(np.float32)
    assert cosines(direction[np.newaxis], exact[record.reference.token][np.newaxis])[0] > 0.999999
