"""Plans against memory that was really taken: by llama.cpp, and by whole runs inside a control group."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from PIL import Image

from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.llama.params import ContextParams
from acestep_gguf.plan.compute_buffers import compute_buffer_bytes, output_buffer_bytes
from acestep_gguf.plan.decoder_memory import decoder_shape, decoder_weights, kv_layer_bytes, n_bytes
from acestep_gguf.plan.work_buffer import work_buffer_bytes
from scripts.bench.measured_run import Peaks
from scripts.bench.memory_group import MemoryGroup, memory_group
from scripts.checks.simulated_load import decoder_layout, write_sparse
from scripts.synthetic.bundle import write_bundle, write_checkpoint
from scripts.synthetic.checkpoint import SHAPES, Shape, VisionShape

COMMAND = [sys.executable, "-m", "acestep_gguf.cli"]
MIB = 2**20
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="Linux tells anonymous and mapped memory"
)

# A process of its own: loads the decoder, fills some of its context, and prints what that took.
CHILD = """
import json, sys
from pathlib import Path
from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.params import ContextParams

def taken():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
    return [1024 * int(fields[name].split()[0]) for name in ("RssAnon", "RssFile")]

params = ContextParams(**json.loads(sys.argv[2]))
before = taken()
with Model(Path(sys.argv[1])) as model, Context(model, params) as context:
    for start in range(0, int(sys.argv[3]), params.n_ubatch):
        context.decode_tokens(list(range(params.n_ubatch)), start, n_outputs=1)
    print(json.dumps([after - b for after, b in zip(taken(), before)]))
"""


@pytest.mark.slow
# The first has a large cache; the second is full, so that the compute buffer is used to its end.
@pytest.mark.parametrize(
    ("shape", "options", "n_tokens"),
    [
        (SHAPES["0.5b"], {"n_ctx": 8192, "n_batch": 256, "n_ubatch": 256}, 256),
        (
            Shape(512, 6, 8, 4, 1536, 32000, tied=False),
            {"n_ctx": 2048, "n_batch": 1024, "n_ubatch": 1024, "type_k": "q8_0", "type_v": "q8_0"},
            2048,
        ),
    ],
)
def test_weights_kv_and_compute_of_a_real_load(
    shape: Shape, options: dict[str, int | str], n_tokens: int, tmp_path: Path
) -> None:
    path = tmp_path / "decoder.gguf"
    write_sparse(path, decoder_layout(shape, "Q4_K_M"))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), json.dumps(options), str(n_tokens)],
        capture_output=True,
        text=True,
        check=True,
    )
    anonymous, mapped = json.loads(done.stdout)

    header = read_gguf_header(path)
    planned, weights = decoder_shape(header), decoder_weights(header)
    params = ContextParams(**options)  # type: ignore[arg-type]
    (compute,) = compute_buffer_bytes(planned, weights, params)
    kv = planned.n_layer * kv_layer_bytes(planned, params.n_ctx, params.type_k, params.type_v)
    rest = output_buffer_bytes(planned, params) + work_buffer_bytes(planned, weights, params)
    # Beside them llama.cpp keeps a few MiB: its graph, the names of tensors, threads' stacks.
    assert 0.97 * (kv + compute + rest) < anonymous < 1.03 * (kv + compute + rest) + 12 * MIB
    # Of embeddings that are no output matrix, only the tokens' rows are read; libraries are mapped, too.
    read = n_bytes(header.tensors) - (0 if weights.is_tied else weights.embeddings.nbytes)
    assert read - MIB < mapped < n_bytes(header.tensors) + 48 * MIB


def planned(bundle: Path, options: list[str]) -> dict[str, int]:
    """What `plan` says of RAM."""
    command = [*COMMAND, "plan", str(bundle), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    facts: dict[str, int] = json.loads(done.stdout)["ram"]
    return facts


@pytest.fixture(scope="module")
def deep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that runs, whose decoder has much to remember of a picture: 67 MB."""
    folder = tmp_path_factory.mktemp("deep")
    (folder / "checkpoint").mkdir()
    shape, vision = Shape(512, 32, 8, 8, 512, 151936, tied=True), VisionShape(256, 2, 4, 512, 14, 448)
    write_checkpoint(folder / "checkpoint", shape, vision)
    write_bundle(folder / "checkpoint", folder / "bundle", ["Q4_K_M"], name="Deep", sparse=True, prefill=True)
    return folder / "bundle"


# The first is the default, which keeps on disk what was read of pictures.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "n_images"),
    [
        (["-n", "4", "--prefill", "off"], 1),
        (["-n", "4", "--prefill", "off", "--no-cache"], 1),
        (["-n", "4", "--prefill", "off", "--image-tokens", "300"], 2),
        (["-n", "4", "--prefill", "int8"], 1),
        (["-n", "4", "--prefill", "int8", "--no-cache"], 1),
    ],
)
def test_a_run_takes_what_is_planned(
    deep_folder: Path,
    options: list[str],
    n_images: int,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pinned = ["--ctx-size", "1536", "--no-repack", *options[2:]]
    need = planned(deep_folder, [*pinned, "--images", str(n_images)])["anonymous"]
    pictures = []
    for number in range(n_images):
        path = tmp_path / f"{number}.png"
        Image.open(picture).rotate(90 * number, expand=True).save(path)
        pictures += ["--image", str(path)]
    words = [*COMMAND, "run", str(deep_folder), *options[:2], *pinned, *pictures, "What is it?"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peaks = Peaks()
    peaks.watch(process)
    assert process.wait() == 0, process.stderr and process.stderr.read()
    # What onnxruntime reads prompts with is planned at its most, for a prompt that fills the context.
    least = 0.8 if "int8" in options else 0.95
    assert least * need < peaks.anonymous < 1.05 * need


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    """A control group that only this test uses."""
    with ExitStack() as made:
        try:
            group = made.enter_context(memory_group())
        except OSError as error:
            pytest.skip(f"no control group can be made here ({error})")
        yield group


def run_in(
    group: MemoryGroup, limit: int, bundle: Path, options: list[str]
) -> "subprocess.CompletedProcess[str]":
    group.limit(limit)
    command = group.command(*COMMAND, "run", str(bundle), "-n", "2", *options, "What is it?")
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("mapping", ["--mmap", "--no-mmap"])
def test_a_run_stays_inside_its_group_or_is_refused(
    hollow_folder: Path, picture: Path, group: MemoryGroup, mapping: str
) -> None:
    pinned = ["--ctx-size", "32768", "-ub", "512", "-ctk", "f16", "-ctv", "f16", "--no-repack", mapping]
    need = planned(hollow_folder, pinned)["needed"]

    options = [*pinned, "--image", str(picture)]
    inside = run_in(group, int(1.05 * need), hollow_folder, options)
    assert inside.returncode == 0, inside.stderr
    refused = run_in(group, int(0.95 * need), hollow_folder, options)
    assert refused.returncode == 1, refused.stderr
    assert "more RAM than its cgroup has left" in refused.stderr
    assert refused.stderr.count("\n") == 1
