"""How positions are rotated into queries and keys, as config.json says it.

Version 4 of transformers wrote ``rope_theta`` and ``rope_scaling``, version 5 writes ``rope_parameters``;
both end in ``RopeParameters``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from acestep_gguf.errors import CheckpointError, UnsupportedModelError

Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e12)]
RopeFactor = Annotated[float, msgspec.Meta(ge=1, le=2**20)]
Mscale = Annotated[float, msgspec.Meta(ge=0, lt=1e6)]
ContextLength = Annotated[int, msgspec.Meta(ge=1, le=2**30)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeParameters:
    """Rotary position embedding: its base, and how it is stretched to longer contexts.

    The type "dynamic" changes nothing within ``max_position_embeddings``, which is as far as we go.
    """

    rope_type: str = "default"
    rope_theta: Positive = 10_000.0
    factor: RopeFactor | None = None
    original_max_position_embeddings: ContextLength | None = None
    attention_factor: Positive | None = None
    beta_fast: Positive | None = None
    beta_slow: Positive | None = None
    mscale: Mscale | None = None
    mscale_all_dim: Mscale | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    truncate: bool = True

    def yarn_attention_factor(self) -> float:
        """What YaRN multiplies cosine and sine by: transformers' ``_compute_yarn_parameters``."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._mscale(self.mscale) / self._mscale(self.mscale_all_dim)
        return self._mscale(1.0)

    def _mscale(self, mscale: float) -> float:
        factor = self.factor or 1.0
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_parameters(text: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """``rope_parameters`` of version 5 out of either version's keys, with transformers' precedence."""
    given = text.get("rope_scaling") or text.get("rope_parameters") or {}
    if not isinstance(given, dict):
        raise CheckpointError(f"{path}: the rope parameters are not an object: get an undamaged checkpoint.")
    rope = dict(given)
    old_type = rope.pop("type", None)
    if old_type is not None:
        rope.setdefault("rope_type", old_type)
    if text.get("rope_theta") is not None:
        rope.setdefault("rope_theta", text["rope_theta"])
    if rope.pop("partial_rotary_factor", text.get("partial_rotary_factor")) not in (None, 1, 1.0):
        raise UnsupportedModelError(f"{path}: decoders with partial_rotary_factor are not supported.")
    if unknown := set(rope) - set(RopeParameters.__dataclass_fields__):
        raise UnsupportedModelError(f"{path}: the rope parameter {min(unknown)!r} is not supported.")
    return rope
