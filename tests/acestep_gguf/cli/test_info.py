"""``info``."""

import json
import subprocess
import sys
from pathlib import Path

from tests.support.command_line import acestep


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
