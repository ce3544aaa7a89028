"""What a bundle consists of, from its files' headers: no weights are read."""

from pathlib import Path
from typing import Any

import msgspec

from acestep_gguf.bundle.decoder_info import decoder_info
from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.bundle.schema import Bundle, Vision, check_file


def bundle_facts(folder: Path) -> dict[str, Any]:
    """What the bundle in ``folder`` consists of, as JSON values; sizes in bytes.

    Raises:
        BundleError: it is not a bundle, or one of its files is missing or damaged.
    """
    bundle = Bundle.read(folder)
    for record in bundle.records():
        check_file(folder, record)
    default = bundle.decoder()
    model = decoder_info(read_gguf_header(folder / default.file))
    return {
        "name": bundle.name,
        "architecture": bundle.source.architecture,
        "vision_model_type": bundle.source.vision_model_type,
        "text_model_type": bundle.source.text_model_type,
        "source_quantization": bundle.source.quantization,
        "parameters": model.n_params,
        "context_length": model.context_length,
        "embedding_length": model.embedding_length,
        "block_count": model.block_count,
        "vocabulary": model.n_vocab,
        "decoders": [
            {
                "ftype": ftype,
                "file": record.file,
                "bytes": record.bytes,
                "bits_per_weight": record.bits_per_weight,
                "default": ftype == bundle.decoders.default,
            }
            for ftype, record in bundle.decoders.files.items()
        ],
        "vision": _vision_facts(bundle.vision),
        "prefill": bundle.prefill
        and {"file": bundle.prefill.file, "bytes": bundle.prefill.bytes + bundle.prefill.data.bytes},
        "image": bundle.image
        and {
            "height": bundle.image.size.height,
            "width": bundle.image.size.width,
            "tokens": bundle.image.n_image_tokens,
            "tiles": bundle.image.tiles and msgspec.to_builtins(bundle.image.tiles),
        },
    }


def _vision_facts(vision: Vision | None) -> list[dict[str, Any]]:
    if vision is None:
        return []
    return [
        {
            "precision": precision,
            "file": record.file,
            "bytes": record.bytes + record.data.bytes,
            "cosine_to_float32": record.cosine_to_float32,
            "min_cosine_to_float32": record.min_cosine_to_float32,
            "centred_cosine_to_float32": record.centred_cosine_to_float32,
            "min_centred_cosine_to_float32": record.min_centred_cosine_to_float32,
            "default": precision == vision.default,
        }
        for precision, record in vision.files.items()
    ]
