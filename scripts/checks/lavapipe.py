"""llama.cpp's Vulkan backend without a GPU: on lavapipe, Mesa's driver that computes on the CPU.

    python -m scripts.checks.lavapipe WORK

Sets everything up in WORK from Debian's packages, and keeps what is done; nothing is installed. llama.cpp's
libraries are built with Vulkan, in some ten minutes on two cores. Then the demo, and SmolLM2 where the extra
is installed, answer with no layer, some and all of them on the device: texts and logits are compared with
those of the installed llama.cpp on the CPU, and what was planned with what llama.cpp says it took; last,
compute buffers of random settings. Needs Debian 12 or later, cmake and a C++ compiler. How fast lavapipe is
says nothing of GPUs.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from acestep_gguf.bundle.names import DecoderFtype, Ftype
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.convert.llama_cpp.gguf_import import import_gguf
from acestep_gguf.demo.questions import CHECKPOINT, read_questions
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.options import EngineOptions
from acestep_gguf.plan.report import plan_facts
from acestep_gguf.quality.measures import kl_divergences
from scripts.bench.smollm2 import smollm2_file
from scripts.checks.simulated_load import BUFFER_LINE, MIB, Load, compare, is_ram, random_loads
from scripts.debian import apt_get, extract
from scripts.synthetic.checkpoint import Shape

FloatArray = npt.NDArray[np.float32]

ROOT: Final = Path(__file__).parents[2]
MODULE: Final = "scripts.checks.lavapipe"
# The driver and the shaders' compiler, of the release that runs here; headers of one that llama.cpp knows.
PROGRAMS: Final = ("mesa-vulkan-drivers", "libvulkan1", "glslc", "libshaderc1")
HEADERS: Final = ("libvulkan-dev", "spirv-headers")
HEADERS_SUITE: Final = "trixie"
DRIVER: Final = "libvulkan_lvp.so"
# lavapipe binds no more of a tensor: llama.cpp computes larger ones on the CPU. GPUs bind 1 GiB and more.
MOST_BOUND: Final = 2**27
RANDOM: Final = Shape(512, 6, 8, 4, 1536, 32000, tied=False)
ON_CPU: Final = "cpu"
DEMO_QUANTS: Final[tuple[Ftype, ...]] = ("F32", "Q4_K_M")
LAYERS: Final = ("0", "2", "-1")  # on the device
N_CTX: Final = 512
N_PROMPT: Final = 48  # long enough to be multiplied on the device with weights that lie in RAM
N_NEXT: Final = 8
LOGGED_ERROR: Final = 0.02  # MiB: llama.cpp logs two digits of each buffer


@dataclass(frozen=True)
class Case:
    """A decoder of a bundle, and what it is asked."""

    name: str
    bundle: Path
    quant: DecoderFtype
    question: str
    picture: Path | None = None


def packages(work: Path) -> Path:
    """A folder with the driver, the loader, the shaders' compiler and headers."""
    root = work / "root"
    if not root.exists():
        archives = work / "cache/archives"
        (archives / "partial").mkdir(parents=True, exist_ok=True)
        here = ["apt-get", "-q", "--yes", f"-oDir::Cache={work}/cache", "-oDebug::NoLocking=1", "install"]
        options = ["--download-only", "--reinstall", "--no-install-recommends"]
        subprocess.run([*here, *options, *PROGRAMS], check=True)
        words = apt_get(work / "apt", HEADERS_SUITE, "amd64")
        headers = work / "headers"
        headers.mkdir(exist_ok=True)
        subprocess.run([*words, "download", *HEADERS], cwd=headers, check=True)
        unfinished = work / "root.tmp"
        extract([*archives.glob("*.deb")], unfinished)
        extract([*headers.glob("*.deb")], unfinished)
        unfinished.rename(root)
    return root


def driver(root: Path) -> dict[str, str]:
    """Environment of programs that are to see lavapipe, and nothing else, as a GPU."""
    (library,) = root.rglob(DRIVER)
    manifest = root / "lavapipe.json"
    icd = {"api_version": "1.3.0", "library_path": str(library)}
    manifest.write_text(json.dumps({"file_format_version": "1.0.0", "ICD": icd}))
    return {
        "LD_LIBRARY_PATH": str(library.parent),
        "VK_ICD_FILENAMES": str(manifest),
        "GGML_VK_VISIBLE_DEVICES": "0",  # llama.cpp takes no device that is a CPU unless it is named
    }


def libraries(work: Path, root: Path, environment: Mapping[str, str]) -> Path:
    """llama.cpp's libraries with Vulkan, for this CPU."""
    folder = work / "libllama"
    if not folder.exists():
        (loader,) = root.rglob("libvulkan.so.1")
        glslc = work / "glslc"  # which finds its own libraries, and leaves cmake's alone
        found = f"LD_LIBRARY_PATH={environment['LD_LIBRARY_PATH']}"
        glslc.write_text(f'#!/bin/sh\n{found} exec {root}/usr/bin/glslc "$@"\n')
        glslc.chmod(0o755)
        options = {
            "GGML_VULKAN": "ON",
            "GGML_NATIVE": "ON",
            "GGML_BACKEND_DL": "OFF",
            "GGML_CPU_ALL_VARIANTS": "OFF",
            "Vulkan_INCLUDE_DIR": f"{root}/usr/include",
            "Vulkan_LIBRARY": str(loader),
            "Vulkan_GLSLC_EXECUTABLE": str(glslc),
            "SPIRV-Headers_DIR": f"{root}/usr/share/cmake/SPIRV-Headers",
        }
        script = [str(ROOT / "scripts/edge/build_libllama.sh"), str(folder)]
        command = ["nice", *script, *(f"-D{name}={value}" for name, value in options.items())]
        subprocess.run(command, env=os.environ | {"PYTHON": sys.executable}, check=True)
    return folder


def cases(work: Path) -> Iterator[Case]:
    """The demo in float32, which both sides compute in, and quantized; SmolLM2 where it is installed."""
    demo, smollm2, source = work / "demo", work / "smollm2", smollm2_file()
    if not demo.exists():
        convert_checkpoint(CHECKPOINT, demo, DEMO_QUANTS)
    question = read_questions(CHECKPOINT)[0]
    for quant in DEMO_QUANTS:
        yield Case(f"demo, {quant}", demo, quant, question.question, CHECKPOINT / question.image)
    if source is not None:
        if not smollm2.exists():
            import_gguf(source, smollm2)
        ftype = Bundle.read(smollm2).decoders.default
        yield Case(f"SmolLM2-135M, {ftype}", smollm2, ftype, "What is the capital of France?")


def answer(case: Case, layers: str, environment: Mapping[str, str]) -> tuple[dict[str, Any], FloatArray]:
    """What ``_child`` prints, and its logits, float32 [N_NEXT + 1, n_vocab]."""
    asked = [case.question, *([] if case.picture is None else [str(case.picture)])]
    command = [sys.executable, "-m", MODULE, "--child", str(case.bundle), case.quant, layers, *asked]
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, check=True)
    head, _, rows = done.stdout.partition(b"\n")
    return json.loads(head), np.frombuffer(rows, np.float32).reshape(N_NEXT + 1, -1)


def print_answers(work: Path, environment: Mapping[str, str]) -> None:
    """A row for each decoder and number of layers."""
    print(
        "| decoder | layers | answer | logits off | divergence | same first | weights | KV | compute | RAM |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for case in cases(work):
        expected, expected_logits = answer(case, ON_CPU, {})
        for layers in LAYERS:
            found, logits = answer(case, layers, environment)
            text = (
                "the CPU's"
                if found["tokens"] == expected["tokens"]
                else f"{found['text']!r}, not {expected['text']!r}"
            )
            off = np.abs(logits - expected_logits).max() / expected_logits.std()
            divergences = kl_divergences(expected_logits, logits)
            same = np.mean(logits.argmax(-1) == expected_logits.argmax(-1))
            sizes = " | ".join(size_pairs(found))
            print(
                f"| {case.name} | {layers} | {text} | {off:.1e} | {np.mean(divergences):.1e} | "
                f"{same:.0%} | {sizes} |",
                flush=True,
            )


def size_pairs(found: Mapping[str, Any]) -> Iterator[str]:
    """Planned bytes, and what llama.cpp says in MiB: weights, KV and compute buffer there, buffers in RAM."""
    planned = dict.fromkeys(("weights", "KV", "compute", "RAM"), 0)
    for part in found["plan"]["parts"]:
        name, device = part["name"], part["device"]
        if device == 0 and name in ("compute buffer", "output buffer"):
            planned["RAM"] += part["n_bytes"]
        elif device == 1 and name != "reserve":
            planned[{"KV cache": "KV", "compute buffer": "compute"}.get(name, "weights")] += part["n_bytes"]
    taken = dict.fromkeys(planned, 0.0)
    for device, kind, size in found["buffers"]:
        if is_ram(device):
            taken["RAM"] += float(size) if kind in ("compute", "output") else 0.0
        else:
            taken[{"model": "weights"}.get(kind, kind)] += float(size)
    for name, n_bytes in planned.items():
        same = abs(n_bytes / MIB - taken[name]) < LOGGED_ERROR
        yield f"{n_bytes:,}" if same else f"{n_bytes:,}, NOT {taken[name]:.2f} MiB"


def print_buffers(count: int) -> None:
    """Compute buffers of random settings."""
    drawn = random_loads(RANDOM.layers, 10 * count, seed=1)
    loads = [load for load in drawn if largest_bytes(load) <= MOST_BOUND][:count]
    errors = compare(RANDOM, "Q4_K_M", loads, gpu="installed")
    print(
        f"\ncompute buffers of {errors.n_contexts} random settings: {errors.n_exact} as planned, "
        f"none larger by more than {errors.missing:.2f} MiB"
    )


def largest_bytes(load: Load) -> int:
    """Of the tensors that attention computes: its mask, or its scores."""
    context = load.context
    per_position = 2 if context.flash_attn == "on" else 4 * RANDOM.heads
    return per_position * context.n_ctx * min(context.n_ubatch, context.n_batch)


class Lines(logging.Handler):
    """All that llama.cpp logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _child(bundle: str, quant: DecoderFtype, layers: str, question: str, *pictures: str) -> None:
    """An answer, and logits after a prompt and after each of some tokens that follow, whatever is likely."""
    logger, log = logging.getLogger("acestep_gguf.llama"), Lines()
    logger.setLevel(logging.DEBUG)
    logger.addHandler(log)
    n_gpu_layers = None if layers == ON_CPU else int(layers)
    # A CPU that repacks its weights computes other numbers, and beside a GPU llama.cpp repacks none.
    options = EngineOptions(
        quant=quant, n_ctx=N_CTX, n_threads=1, n_gpu_layers=n_gpu_layers, use_extra_bufts=False
    )
    with AceStep(bundle, options) as model:
        answer = model.generate(question, pictures, temperature=0, max_tokens=8)
        context = model._decoder.context
        context.keep(0)
        n_vocab = context.model.n_vocab
        tokens = [(7 + 31 * i) % n_vocab for i in range(N_PROMPT + N_NEXT)]
        context.decode_tokens(tokens[:N_PROMPT], 0, n_outputs=1)
        rows = [context.logits()]
        for position in range(N_PROMPT, N_PROMPT + N_NEXT):
            context.decode_tokens([tokens[position]], position, n_outputs=1)
            rows.append(context.logits())
        found = {"plan": plan_facts(model.plan), "tokens": answer.tokens, "text": answer.text}
    found["buffers"] = [match for line in log.lines for match in BUFFER_LINE.findall(line)]
    sys.stdout.buffer.write(json.dumps(found).encode() + b"\n" + np.stack(rows).tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for packages, libraries and bundles")
    parser.add_argument("--placements", type=int, default=100, help="random settings (default: 100)")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    root = packages(work)
    environment = driver(root)
    folder = libraries(work, root, environment)
    # Shaders are compiled for this CPU at their first use, and kept there.
    environment |= {"LLAMA_CPP_LIB_PATH": str(folder), "XDG_CACHE_HOME": str(work / "cache")}
    print_answers(work, environment)
    os.environ.update(environment)
    print_buffers(arguments.placements)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(sys.argv[2], cast(DecoderFtype, sys.argv[3]), *sys.argv[4:])
    else:
        main()
