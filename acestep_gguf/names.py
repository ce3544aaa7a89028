"""Names that conversion, quantization and the runtime share: file types, precisions and files of a bundle."""

import re
from typing import Final, Literal, cast, get_args

Ftype = Literal["Q4_K_M", "Q5_K_M", "Q8_0", "F16", "BF16", "F32"]
VisionPrecision = Literal["float32"]

FTYPES: Final[tuple[Ftype, ...]] = get_args(Ftype)

# LLAMA_FTYPE_* of llama.h: what GGUF's general.file_type holds.
LLAMA_FTYPE: Final[dict[Ftype, int]] = {
    "F32": 0,
    "F16": 1,
    "Q8_0": 7,
    "Q4_K_M": 15,
    "Q5_K_M": 17,
    "BF16": 32,
}

BUNDLE_FILE: Final = "bundle.json"


def ftype_from(text: str) -> Ftype:
    """The file type that a user wrote, in any case; who uses it refuses what is none."""
    return cast(Ftype, text.upper())


def decoder_file_name(name: str, size_label: str, ftype: Ftype) -> str:
    """Name of a decoder file after GGUF's naming convention, such as ``Demo-6M-Q4_K_M.gguf``."""
    stem = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.") or "model"
    return f"{stem}-{size_label}-{ftype}.gguf"


def partial_name(name: str) -> str:
    """Name of a file of a bundle while it is written."""
    return f".{name}.partial"


def vision_file_name(precision: VisionPrecision) -> str:
    """Name of the ONNX file of the tower and projector; its weights lie beside it in ``….onnx.data``."""
    return f"vision-{precision}.onnx"
