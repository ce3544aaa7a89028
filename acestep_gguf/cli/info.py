"""``acestep-gguf info``: what is in a bundle, without loading it."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from acestep_gguf.cli.options import AsJson, BundleFolder
from acestep_gguf.cli.terminal import json_text, printable

if TYPE_CHECKING:
    from acestep_gguf.bundle.schema import Bundle

# By the kind of tiles; others all have one size.
CROPS: Final = {"any_size": "of up to", "quarters": "in crops of up to"}


def info(bundle: BundleFolder, as_json: AsJson = False) -> None:
    """Show what is in a bundle."""
    facts = facts_and_settings(bundle)
    print(json_text(facts) if as_json else table(facts))


def facts_and_settings(folder: Path) -> dict[str, Any]:
    """The facts of a bundle, and the settings that it would be loaded with on this machine."""
    from acestep_gguf.bundle.bundle_facts import bundle_facts
    from acestep_gguf.bundle.schema import Bundle
    from acestep_gguf.plan.machine_settings import machine_settings

    facts = bundle_facts(folder)
    bundle = Bundle.read(folder)
    settings, reason = machine_settings(bundle, bundle.decoder(), pictures=bundle.vision is not None)
    return {
        **facts,
        "quality": _quality(folder, bundle),
        "settings": asdict(settings),
        "settings_reason": reason,
    }


def _quality(folder: Path, bundle: "Bundle") -> dict[str, Any] | None:
    """The report that the bundle carries, as JSON values, without the questions and the answers."""
    if bundle.quality is None:
        return None
    import msgspec

    from acestep_gguf.quality.bundled import read_from_bundle

    report = msgspec.to_builtins(read_from_bundle(folder, bundle))
    figures = [
        {key: value for key, value in found.items() if key != "answers"} for found in report["candidates"]
    ]
    return {"n_questions": len(report["asked"]), "candidates": figures}


def table(facts: dict[str, Any]) -> str:
    """The facts for a person to read."""
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
        *([("pictures", f"{_sides(image)} pixels, {image['tokens']} tokens each")] if image else []),
        ("", ""),
        *(
            (file["ftype"], _file(file, f"{file['bits_per_weight']:.2f} bits/weight"))
            for file in facts["decoders"]
        ),
        *((file["precision"], _file(file, _cosines(file))) for file in facts["vision"]),
        *_prefill_rows(facts["prefill"]),
        *_quality_rows(facts["quality"]),
        ("", ""),
        ("settings", facts["settings_reason"]),
    ]
    return "\n".join(f"{label:<10}{text}".rstrip() for label, text in rows)


def _prefill_rows(prefill: dict[str, Any] | None) -> list[tuple[str, str]]:
    if prefill is None:
        return []
    return [("prefill", _file({**prefill, "default": False}, "int8, reads long prompts"))]


def _quality_rows(quality: dict[str, Any] | None) -> list[tuple[str, str]]:
    if quality is None:
        return []
    names = [printable(f"{found['decoder']}, {found['tower']}") for found in quality["candidates"]]
    width = max(map(len, names))
    rows = [
        ("", ""),
        ("quality", f"against {names[0]}, over {quality['n_questions']} questions about pictures"),
    ]
    for name, found in list(zip(names, quality["candidates"], strict=True))[1:]:
        divergence, top_1 = found["kl_divergence"]["mean"]["value"], found["top_1"]["value"]
        rows.append(("", f"{name:<{width}}  KL divergence {divergence:.1e}  same token {top_1:.1%}"))
    return rows


def _sides(image: dict[str, Any]) -> str:
    sides, tiles = f"{image['width']} x {image['height']}", image["tiles"]
    return f"{CROPS.get(tiles['kind'], 'in tiles of')} {sides}" if tiles else sides


def _file(file: dict[str, Any], quality: str) -> str:
    mark = "  default" if file["default"] else ""
    return f"{file['bytes'] / 1e6:>10.1f} MB  {quality:<32}{file['file']}{mark}"


def _cosines(file: dict[str, Any]) -> str:
    centred = file["centred_cosine_to_float32"]
    end = "" if centred is None else f", {centred:.4f} centred"
    return f"cosine {file['cosine_to_float32']:.4f}{end}"


def _count(number: int) -> str:
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return str(number)
