"""A tiny bundle for every test that needs one: random weights, made once, through the converter."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.llama.binding import Model
from tests.support.tiny_checkpoints import TinyCheckpoint

# A busy machine is slow at drawing examples, too, which is no fault of a test.
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", type=Path, help="folder to write the documentation's pictures to")


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where tests, and processes that they start, keep what verbs keep: not in the user's folders."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.delenv("ACESTEP_GGUF_BUNDLE", raising=False)
        yield folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyCheckpoint().write(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only; tests that damage a bundle take ``bundle_copy``."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    convert_checkpoint(tiny_checkpoint, folder, ("Q4_K_M", "Q8_0", "F32"))
    return folder


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


@pytest.fixture(scope="session")
def decoder_file(tiny_bundle: Path) -> Path:
    return tiny_bundle / Bundle.read(tiny_bundle).decoder("F32").file


@pytest.fixture(scope="session")
def weights(decoder_file: Path) -> Iterator[Model]:
    with Model(decoder_file) as opened:
        yield opened


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[AceStep]:
    with AceStep(tiny_bundle, quant="F32", n_threads=1, n_ctx=256) as opened:
        yield opened


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    image = Image.linear_gradient("L").resize((60, 40)).convert("RGB")
    image.paste((200, 30, 30), (5, 5, 25, 30))
    image.save(path)
    return path
