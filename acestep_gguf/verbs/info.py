"""``acestep-gguf info``: what is in a bundle, without loading it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from acestep_gguf.bundle.decoder_info import decoder_info
from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.bundle.schema import Bundle, Vision, check_file
from acestep_gguf.plan.machine_settings import machine_settings


def info(folder: Path, *, as_json: bool) -> str:
    """A table, or a JSON object, about the bundle in ``folder``.

    Raises:
        BundleError: no bundle, or one of its files is missing or damaged.
    """
    facts = bundle_facts(folder)
    return msgspec.json.format(msgspec.json.encode(facts), indent=2).decode() if as_json else _table(facts)


def bundle_facts(folder: Path) -> dict[str, Any]:
    """The facts that ``info`` shows; sizes in bytes."""
    bundle = Bundle.read(folder)
    for record in bundle.records():
        check_file(folder, record)
    default = bundle.decoder()
    settings, settings_reason = machine_settings(bundle, default, pictures=bundle.vision is not None)
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
        "image": bundle.image
        and {
            "height": bundle.image.size.height,
            "width": bundle.image.size.width,
            "tokens": bundle.image.n_image_tokens,
        },
        "settings": asdict(settings),
        "settings_reason": settings_reason,
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
            "default": precision == vision.default,
        }
        for precision, record in vision.files.items()
    ]


def _table(facts: dict[str, Any]) -> str:
    image = facts["image"]
    rows = [
        ("model", f"{facts['name']} ({facts['architecture']})"),
        ("decoder", f"{facts['text_model_type']}, {_count(facts['parameters'])} parameters"),
        ("", f"{facts['block_count']} blocks of {facts['embedding_length']}"),
        *(
            [("", f"quantized twice, first as {facts['source_quantization']}")]
            if facts["source_quantization"]
            else []
        ),
        ("", f"vocabulary of {facts['vocabulary']} tokens, context of {facts['context_length']} tokens"),
        ("tower", facts["vision_model_type"] or "none: it answers questions about text only"),
        *(
            [("pictures", f"{image['width']} x {image['height']} pixels, {image['tokens']} tokens each")]
            if image
            else []
        ),
        ("", ""),
        *(
            (file["ftype"], _file(file, f"{file['bits_per_weight']:.2f} bits/weight"))
            for file in facts["decoders"]
        ),
        *(
            (file["precision"], _file(file, f"cosine {file['cosine_to_float32']:.4f}"))
            for file in facts["vision"]
        ),
        ("", ""),
        ("settings", facts["settings_reason"]),
    ]
    return "\n".join(f"{label:<10}{text}".rstrip() for label, text in rows)


def _file(file: dict[str, Any], quality: str) -> str:
    mark = "  default" if file["default"] else ""
    return f"{file['bytes'] / 1e6:>10.1f} MB  {quality:<20}{file['file']}{mark}"


def _count(number: int) -> str:
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return str(number)
