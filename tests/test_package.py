"""The arrows between packages, what an import costs, and what the wheel claims."""

import ast
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

import acestep_gguf
from acestep_gguf.cli.option_groups import in_flags
from acestep_gguf.cli.verbs import VERBS, command
from acestep_gguf.errors import UsageError

ROOT = Path(__file__).parent.parent

# From the ground up: a module imports from its own floor and from those below it.
FLOORS = (
    (
        "addresses",
        "errors",
        "answer",
        "cpus",
        "grammar",
        "options",
        "ort_builds",
        "ort_session",
        "progress",
        "sizes",
    ),
    ("storage",),
    ("bundle",),
    ("llama",),
    ("prompt",),
    ("vision",),
    ("plan",),
    ("prefill",),
    ("decoding",),
    ("engine", "demo"),
    ("batch",),
    ("daft", "ray", "server"),
    ("quality",),
    ("score",),
    ("quantize",),
    ("convert",),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {name: number for number, floor in enumerate(FLOORS) for name in floor}

# Who may import what is heavy or not always installed, by the paths of modules.
OWNERS = {
    "llguidance": ("acestep_gguf/grammar/matcher.py",),
    "llama_cpp": ("acestep_gguf/llama/",),
    "gguf": ("convert/", "quantize/"),
    "onnxruntime": (
        "acestep_gguf/ort_session.py",
        "acestep_gguf/prefill/",
        "acestep_gguf/vision/tower.py",
        "convert/tower/calibration.py",
    ),
    "onnx": ("convert/onnx_graph.py", "convert/int8_layers/", "convert/tower/"),
    "pillow_heif": ("acestep_gguf/vision/image_file.py",),
    "pyarrow": (
        *("acestep_gguf/batch/blocks.py", "acestep_gguf/batch/parquet.py", "acestep_gguf/score/parquet.py"),
        *("acestep_gguf/daft.py", "acestep_gguf/ray.py"),
    ),
    "daft": ("acestep_gguf/daft.py",),
    "ray": ("acestep_gguf/ray.py",),
    "pypdfium2": ("acestep_gguf/vision/pdf.py",),
    **dict.fromkeys(
        ("fastapi", "prometheus_client", "pydantic", "starlette", "uvicorn"), ("acestep_gguf/server/",)
    ),
    "torch": ("acestep_gguf/quality/reference.py",),
    "transformers": ("acestep_gguf/quality/reference.py",),
    "tokenizers": (),
}


def sources() -> Iterator[Path]:
    """The modules of the package, by their paths in the repository, each once."""
    for top in ("acestep_gguf", "convert", "quantize"):
        for path in sorted((ROOT / top).rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents):
                yield path.relative_to(ROOT)


def module_name(path: Path) -> str:
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    return name if name.startswith("acestep_gguf") else f"acestep_gguf.{name}"


def imported_names(path: Path, *, everywhere: bool = True) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    names: set[str] = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def room_of(name: str) -> str:
    """``storage`` of ``acestep_gguf.storage.disk_cache``; empty for the package itself and for others."""
    top, _, rest = name.partition(".")
    return rest.partition(".")[0] if top == "acestep_gguf" else ""


@pytest.mark.parametrize("path", [*sources()], ids=str)
def test_arrows_point_down(path: Path) -> None:
    room = room_of(module_name(path))
    if not room:  # acestep_gguf/__init__.py names what it gives out, and imports it when it is asked for
        return
    for name in imported_names(path):
        if other := room_of(name):
            assert FLOOR_OF[other] <= FLOOR_OF[room], f"{path} imports {name}, which is above it"


def test_import_paths_are_file_paths() -> None:
    for path in sources():
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("acestep_gguf"):
                place = ROOT.joinpath(*str(node.module).split("."))
                assert place.with_suffix(".py").is_file() or (place / "__init__.py").is_file(), node.module


def test_no_circles() -> None:
    known = {module_name(path): path for path in sources()}
    arrows = {
        module: {name for name in imported_names(path, everywhere=False) if name in known and name != module}
        for module, path in known.items()
    }
    while leaves := [module for module, targets in arrows.items() if not targets & arrows.keys()]:
        for module in leaves:
            del arrows[module]
    assert not arrows, f"these import each other in a circle: {sorted(arrows)}"


def test_no_two_rooms_have_one_name() -> None:
    rooms = Counter(
        path.stem
        for top in ("acestep_gguf", "convert", "quantize")
        for path in (ROOT / top).iterdir()
        if not path.is_symlink() and (path.suffix == ".py" or (path / "__init__.py").exists())
    )
    assert [name for name, count in rooms.items() if count > 1] == ["__init__"]


def test_heavy_packages_are_each_touched_in_one_place() -> None:
    for path in sources():
        for library in {name.partition(".")[0] for name in imported_names(path)} & OWNERS.keys():
            assert path.as_posix().startswith(OWNERS[library] or "-"), f"{path} imports {library}"


def flags_of_all_verbs() -> set[str]:
    parameters = [parameter for verb in VERBS for parameter in command(verb).params]
    flags = {name for parameter in parameters for name in parameter.opts if name.startswith("--")}
    assert {"--ctx-size", "--max-body", "--tensor-type"} < flags
    return flags


def test_only_the_command_line_speaks_of_its_flags() -> None:
    """Errors name options as Python does: a program, or a client of a server, has no flags."""
    flags = flags_of_all_verbs()
    speaking = set()
    for path in sources():
        nodes = [*ast.walk(ast.parse((ROOT / path).read_text()))]
        docstrings = [node.value for node in nodes if isinstance(node, ast.Expr)]
        texts = [node for node in nodes if isinstance(node, ast.Constant) and node not in docstrings]
        if flags & {flag for text in texts for flag in re.findall(r"--[a-z-]+", str(text.value))}:
            speaking.add(path.as_posix())
    assert {path for path in speaking if not path.startswith("acestep_gguf/cli/")} == {
        "acestep_gguf/options.py",  # declares them
        "acestep_gguf/server/settings.py",
        "acestep_gguf/server/access.py",  # tells a browser's owner how to start his server
        "convert/checkpoint/supported.py",  # those of llama.cpp's converter
    }


def test_what_errors_name_has_a_flag() -> None:
    named = {
        str(element.value)
        for path in sources()
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.keyword) and node.arg == "settings" and isinstance(node.value, ast.List)
        for element in node.value.elts
        if isinstance(element, ast.Constant)
    }
    assert {"n_ctx", "insecure"} < named
    flags = flags_of_all_verbs()
    assert {name for name in named if in_flags(UsageError(name, settings=[name])) not in flags} == set()


def test_the_map_of_the_repository_leads_to_files() -> None:
    """What CONTRIBUTING.md names with a slash, in full or by the end of its path."""
    places = {""}
    for top in (".ci", ".github", "acestep_gguf", "convert", "docs", "quantize", "scripts", "tests"):
        for path in [ROOT / top, *(ROOT / top).rglob("*")]:
            place = f"/{path.relative_to(ROOT).as_posix()}"
            places |= {place.removesuffix(".py"), f"{place}/" if path.is_dir() else place}
    named = re.findall(r"`([\w./]+/[\w./]*)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(named) > 60
    for name in named:
        if "VERB" not in name and not name.startswith("build/"):
            assert any(place.endswith(f"/{name}") for place in places), name


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, acestep_gguf\n"
        "print({'numpy', 'llama_cpp', 'onnxruntime', 'PIL', 'jinja2', 'typer'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"


def test_the_version_is_that_of_the_installed_package() -> None:
    command = [sys.executable, "-m", "acestep_gguf", "--version"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == acestep_gguf.__version__ == version("acestep-gguf")


@pytest.mark.slow
def test_the_wheel_has_one_top_level_name_and_every_file(tmp_path: Path) -> None:
    # By way of a source package, so that neither needs what git does not track.
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"acestep_gguf"}
    assert len(names) == len(set(names))
    for package, installed in (("acestep_gguf", ""), ("convert", "convert/"), ("quantize", "quantize/")):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"acestep_gguf/{installed}{path.relative_to(ROOT / package)}" in names
