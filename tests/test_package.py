"""The arrows between the three packages, what an import costs, and what the wheel claims."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# package -> what it must not import at the top of any module.
FORBIDDEN = {
    "acestep_gguf": ("acestep_gguf.convert", "acestep_gguf.quantize", "onnx", "torch", "transformers"),
    "quantize": ("acestep_gguf.convert", "acestep_gguf.cli", "onnx", "torch", "transformers"),
    "convert": ("acestep_gguf.cli", "torch", "transformers", "tokenizers"),
}


def imported_names(path: Path, *, everywhere: bool) -> set[str]:
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_arrows_point_one_way(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        # cli may import the other packages, inside the verbs that need them, and check's reference torch.
        is_lazy = path.parent.name == "cli" or path.match("acestep_gguf/check/reference.py")
        names = imported_names(path, everywhere=not is_lazy)
        for name in names:
            for forbidden in FORBIDDEN[package]:
                assert not f"{name}.".startswith(forbidden + "."), f"{path} imports {name}"


def test_llama_cpp_and_onnxruntime_are_each_touched_in_one_place() -> None:
    owners = {"llama_cpp": {"llama.py", "llama_backend.py", "llama_devices.py"}, "onnxruntime": {"vision.py"}}
    for library, files in owners.items():
        for path in (ROOT / "acestep_gguf").rglob("*.py"):
            names = {name.split(".")[0] for name in imported_names(path, everywhere=True)}
            assert library not in names or path.name in files, f"{path} imports {library}"


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, acestep_gguf\n"
        "print({'numpy', 'llama_cpp', 'onnxruntime', 'PIL', 'jinja2', 'typer'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"


@pytest.mark.slow
def test_the_wheel_has_one_top_level_name_and_every_file(tmp_path: Path) -> None:
    # By way of a source package, so that neither needs what git does not track.
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"acestep_gguf"}
    for package, installed in (("acestep_gguf", ""), ("convert", "convert/"), ("quantize", "quantize/")):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"acestep_gguf/{installed}{path.relative_to(ROOT / package)}" in names
