"""What a plan needs to know of the first question, and the plan for this machine."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace

from acestep_gguf.bundle.names import VisionPrecision, vision_precision_from
from acestep_gguf.engine.question import Question
from acestep_gguf.errors import UsageError
from acestep_gguf.options import EngineOptions, Prefill, TowerProvider, VisionProvider
from acestep_gguf.plan.bundle_model import BundleModel
from acestep_gguf.plan.draft import Draft
from acestep_gguf.plan.machine import this_machine
from acestep_gguf.plan.machine_settings import MachineSettings
from acestep_gguf.plan.planner import Plan, make_plan
from acestep_gguf.plan.settings import PHOTO_BYTES, TEMPLATE_TOKENS, Settings, Workload
from acestep_gguf.prefill.machine_check import check_int8, gains
from acestep_gguf.prompt.messages import ImagePart
from acestep_gguf.vision.embeds_file import EmbedsSource
from acestep_gguf.vision.encoder import REMEMBERED, Picture, PictureSource
from acestep_gguf.vision.image import opening_bytes
from acestep_gguf.vision.int8_check import vision_precision
from acestep_gguf.vision.provider_check import right_provider
from acestep_gguf.vision.tiling import tiling_of


def workload_of(
    files: BundleModel,
    first: Question | None,
    longest: Question | None = None,
    options: EngineOptions | None = None,
) -> Workload:
    """What to plan for: the first question; many, of which one is the longest; or any about one picture.

    Raises:
        ImageError: a picture is missing, damaged or too large.
        PromptError: the messages are not sound, or the bundle cannot see.
    """
    options = options or EngineOptions()
    if longest is not None:
        later = _opened_later(files, len(longest.pictures))
        n_text, n_text_before, n_text_after = _text_tokens(files, longest)
        return replace(
            later,
            n_embeds=max(later.n_embeds, sum(map(_has_embeds, longest.pictures))),
            n_text=n_text,
            n_text_before=n_text_before,
            n_text_after=n_text_after,
        )
    if first is None:
        return _opened_later(files, int(files.bundle.vision is not None))
    pictures = first.pictures
    n_text, n_text_before, n_text_after = _text_tokens(files, first)
    opened = [picture for picture in pictures if not isinstance(picture, EmbedsSource | Picture)]
    sizes = []
    if opened:
        _, image = files.bundle.tower()
        tiling = tiling_of(image, max_tiles=options.max_tiles, n_pictures=len(pictures))
        sizes = [(picture, opening_bytes(picture, image, tiling)) for picture in opened]
    is_few = 0 < len(pictures) <= REMEMBERED
    return Workload(
        images=len(pictures),
        n_embeds=sum(map(_has_embeds, pictures)),
        image_tokens=_image_tokens(files, options, pictures),
        n_text=n_text,
        n_text_before=n_text_before,
        n_text_after=n_text_after,
        opening_ahead=max((size for _, size in sizes), default=0),
        # Only files that were opened ahead are known again.
        opening_later=max(
            (size for picture, size in sizes if not (is_few and isinstance(picture, str | os.PathLike))),
            default=0,
        ),
        may_stage=is_few,
    )


def _opened_later(files: BundleModel, images: int) -> Workload:
    """Questions about so many pictures, which are not known yet."""
    return Workload(
        images=images,
        n_embeds=0 if _has_tower(files) else images,
        opening_ahead=0,
        opening_later=PHOTO_BYTES if images else 0,
        may_stage=False,
    )


def _image_tokens(
    files: BundleModel, options: EngineOptions, pictures: Sequence[PictureSource]
) -> int | None:
    """Tokens of the pictures together; None if a file of embeds is among them, which is not opened yet."""
    n_tokens = 0
    for picture in pictures:
        if isinstance(picture, EmbedsSource):
            return None
        if isinstance(picture, Picture):
            n_tokens += picture.input.n_tokens
        else:
            n_tokens += files.picture_tokens(picture, len(pictures), options)
    return n_tokens


def _text_tokens(files: BundleModel, question: Question) -> tuple[int | None, int, int]:
    """Tokens of text, at most: with the answer, None if nobody knows, before the last picture, and behind it.

    A token is a byte at least.
    """
    n_text = n_before = 0
    for turn in question.turns:
        n_text += TEMPLATE_TOKENS
        for part in turn.parts:
            if isinstance(part, ImagePart):
                n_before = n_text
            else:
                n_text += len(part.encode())
    n_answer = question.options.max_tokens
    n_after = n_text - n_before
    if n_answer == -1:
        return None, n_before, n_after
    return n_text + len(files.bundle.prompt.chat_template) // 2 + n_answer, n_before, n_after


def _has_embeds(picture: PictureSource) -> bool:
    return isinstance(picture, EmbedsSource) or (isinstance(picture, Picture) and picture.embeds is not None)


def _has_tower(files: BundleModel) -> bool:
    """Whether the tower's files are there; they may be left out for answers from embeds only."""
    return files.bundle.vision is not None and (files.folder / files.bundle.vision_file().file).exists()


def plan_here(
    files: BundleModel,
    options: EngineOptions,
    workload: Workload,
    defaults: MachineSettings,
    draft: Draft | None,
) -> Plan:
    """A plan for this machine, with towers that give right numbers on it; errors are those of make_plan.

    The first time on a machine, an int8 tower that is planned is loaded and checked (see int8_check.py), and
    how fast int8 layers read is measured (see machine_check.py).
    """
    machine = this_machine(options.rpc_addresses)
    plan = make_plan(files, machine, options, workload, defaults=defaults, draft=draft)
    provider = _right_provider(files, options.vision_provider, plan.settings)
    if provider != plan.settings.vision_provider:
        options = replace(options, vision_provider=provider)
        plan = make_plan(files, machine, options, workload, defaults=defaults, draft=draft)
    vision = _right_vision(files, options.vision, plan.settings)
    draft_vision = None if draft is None else _right_vision(draft.bundle, None, plan.draft)
    prefill = _faster_prefill(files, options.prefill, plan.settings)
    is_right = vision == plan.settings.vision and (plan.draft is None or draft_vision == plan.draft.vision)
    if is_right and prefill == options.prefill:
        return plan
    return make_plan(
        files,
        machine,
        replace(options, vision=vision, prefill=prefill),
        workload,
        defaults=defaults,
        draft=None if draft is None else replace(draft, vision=draft_vision),
    )


def _faster_prefill(files: BundleModel, wanted: Prefill, planned: Settings) -> Prefill:
    """ "off" where planned int8 layers are known to read slower than llama.cpp, or wrongly."""
    if planned.int8_layers is None or files.int8_layers is None:
        return wanted
    if wanted == "int8":
        check_int8()
        return wanted
    decoder = files.decoder(planned.quant)
    return wanted if gains(files.int8_layers, decoder, n_threads=planned.n_threads_batch) else "off"


def _right_provider(model: BundleModel, wanted: VisionProvider, planned: Settings) -> TowerProvider:
    """What runs a planned tower, or the CPU in its place, as right_provider says."""
    if planned.vision is None:
        return planned.vision_provider
    threads, provider = planned.tower_threads, planned.vision_provider
    try:
        return right_provider(model.folder, model.bundle, provider, n_threads=threads)
    except UsageError as error:
        if wanted != "auto":
            raise
        warnings.warn(f"the vision tower stays on the CPU: {error}", stacklevel=2)
        return "cpu"


def _right_vision(model: BundleModel, wanted: str | None, planned: Settings | None) -> VisionPrecision | None:
    """The precision of a planned tower, or the one that takes its place, as vision_precision says."""
    if planned is None or planned.vision is None:
        return None
    if planned.vision_provider != "cpu":
        return planned.vision
    precision = None if wanted is None else vision_precision_from(wanted)
    return vision_precision(model.folder, model.bundle, precision, n_threads=planned.tower_threads)
