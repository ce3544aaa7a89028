"""Names that conversion, quantization and the runtime share: file types, precisions and files of a bundle."""

import re
from typing import Final, Literal, cast, get_args

# What a decoder may be made: from the least bits to the most.
Ftype = (
    Literal["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "Q2_K_S", "Q2_K", "IQ3_XXS", "IQ3_XS"]
    | Literal["Q3_K_S", "IQ3_S", "IQ3_M", "Q3_K_M", "Q3_K_L", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_K_S", "Q4_K_M"]
    | Literal["Q4_1", "Q5_0", "Q5_K_S", "Q5_K_M", "Q5_1", "Q6_K", "Q8_0", "F16", "BF16", "F32"]
)
VisionPrecision = Literal["float32", "int8"]
MmprojFtype = Literal["F16", "Q8_0", "F32"]
# What a decoder that somebody else made may be.
DecoderFtype = Ftype | Literal["TQ1_0", "TQ2_0", "MXFP4_MOE"]

FTYPES: Final[tuple[Ftype, ...]] = tuple(name for names in get_args(Ftype) for name in get_args(names))
VISION_PRECISIONS: Final[tuple[VisionPrecision, ...]] = get_args(VisionPrecision)
MMPROJ_FTYPES: Final[tuple[MmprojFtype, ...]] = get_args(MmprojFtype)

# LLAMA_FTYPE_* of llama.h: what GGUF's general.file_type holds.
LLAMA_FTYPE: Final[dict[DecoderFtype, int]] = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11,
    "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18,
    "IQ2_XXS": 19, "IQ2_XS": 20, "Q2_K_S": 21, "IQ3_XS": 22, "IQ3_XXS": 23, "IQ1_S": 24, "IQ4_NL": 25,
    "IQ3_S": 26, "IQ3_M": 27, "IQ2_S": 28, "IQ2_M": 29, "IQ4_XS": 30, "IQ1_M": 31, "BF16": 32, "TQ1_0": 36,
    "TQ2_0": 37, "MXFP4_MOE": 38,
}  # fmt: skip

BUNDLE_FILE: Final = "bundle.json"
# The graph of one decoder layer; the weights of all layers lie beside it in ``….onnx.data``.
PREFILL_FILE: Final = "prefill-int8.onnx"


def ftype_from(text: str) -> Ftype:
    """The file type that a user wrote, in any case; one that does not exist is refused where it is used."""
    return cast(Ftype, text.upper())


def vision_precision_from(text: str) -> VisionPrecision:
    """The precision that a user wrote, in any case; one that does not exist is refused where it is used."""
    return cast(VisionPrecision, text.lower())


def mmproj_ftype_from(text: str) -> MmprojFtype:
    """The type of an mmproj file that a user wrote, in any case; unknown ones are refused where used."""
    return cast(MmprojFtype, text.upper())


def decoder_file_name(name: str, size_label: str, ftype: DecoderFtype) -> str:
    """Name of a decoder file after GGUF's naming convention, such as ``Demo-6M-Q4_K_M.gguf``."""
    return f"{_stem(name)}-{size_label}-{ftype}.gguf"


def mmproj_file_name(name: str, ftype: MmprojFtype) -> str:
    """Name of llama.cpp's file of the tower and projector, such as ``mmproj-Demo-F16.gguf``."""
    return f"mmproj-{_stem(name)}-{ftype}.gguf"


def vision_file_name(precision: VisionPrecision) -> str:
    """Name of the ONNX file of the tower and projector; its weights lie beside it in ``….onnx.data``."""
    return f"vision-{precision}.onnx"


def _stem(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.") or "model"
