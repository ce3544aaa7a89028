"""The two images run alike, as the server means it; scripts/checks/containers.py carries their steps out."""

import json
import re
from pathlib import Path

from scripts.checks.containers import instructions

ROOT = Path(__file__).parent.parent
CPU, CUDA = ([*instructions(ROOT / "docker" / name)] for name in ("Dockerfile", "Dockerfile.cuda"))


def last_stage(image: list[tuple[str, str]]) -> list[tuple[str, str]]:
    start = max(i for i, (name, _) in enumerate(image) if name == "FROM")
    return image[start + 1 :]


def flags(image: list[tuple[str, str]]) -> set[str]:
    (text,) = (text for name, text in image if "cmake --build" in text)
    return set(re.findall(r"-D(\w+=\S+?)[\s\"}]", text))


def test_both_images_run_alike() -> None:
    assert last_stage(CPU) == last_stage(CUDA)
    assert flags(CUDA) - flags(CPU) == {"GGML_CUDA=ON", "CMAKE_CUDA_ARCHITECTURES=${CUDA_ARCHITECTURES"}
    assert flags(CPU) <= flags(CUDA)


def test_they_are_fast_on_every_cpu_and_find_their_libraries() -> None:
    wanted = {"GGML_NATIVE=OFF", "GGML_BACKEND_DL=ON", "GGML_CPU_ALL_VARIANTS=ON"}
    assert wanted | {"GGML_BACKEND_DIR=/opt/llama/lib"} <= flags(CPU)
    assert "LLAMA_CPP_LIB_PATH=/opt/llama/lib" in dict(last_stage(CPU))["ENV"]


def test_they_run_as_nobody_in_particular_and_with_a_key() -> None:
    settings = dict(last_stage(CPU))
    assert settings["USER"] not in ("0", "root")
    command = json.loads(settings["CMD"])
    assert command[command.index("--api-key-file") + 1] == "/run/secrets/api_key"
    assert "/health" in settings["HEALTHCHECK"]
    assert f":{settings['EXPOSE']}/" in settings["HEALTHCHECK"]


def test_what_is_copied_is_what_a_wheel_is_made_of() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert all((ROOT / name).exists() for name in allowed)
    assert {"acestep_gguf", "convert", "quantize", "pyproject.toml", "README.md", "LICENSE"} <= allowed
