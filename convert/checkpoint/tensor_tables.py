"""Every tensor of every family: its Hugging Face name, its name here, and its shape.

Decoder names are GGUF's; names of the tower and projector are those of llama.cpp's mmproj files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

# Hugging Face name -> (name here, shape); None: dropped on purpose. {bid} is the layer's number.
Rows = Mapping[str, tuple[str, tuple[str, ...]] | None]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the model, with every prefix that transformers 4.36 to 5 has written before its tensors."""

    prefixes: tuple[str, ...]
    before_layers: Rows
    layer: Rows = field(default_factory=dict)
    after_layers: Rows = field(default_factory=dict)

    @property
    def rows(self) -> Rows:
        return {**self.before_layers, **self.layer, **self.after_layers}


LLAMA: Final = Part(
    prefixes=(
        "language_model.model.",
        "model.language_model.",
        "language_model.",
        "model.language_model.model.",
        "model.text_model.",
    ),
    before_layers={
        "embed_tokens.weight": ("token_embd.weight", ("n_vocab", "n_embd")),
    },
    layer={
        "layers.{bid}.input_layernorm.weight": ("blk.{bid}.attn_norm.weight", ("n_embd",)),
        "layers.{bid}.self_attn.q_proj.weight": ("blk.{bid}.attn_q.weight", ("n_q", "n_embd")),
        "layers.{bid}.self_attn.k_proj.weight": ("blk.{bid}.attn_k.weight", ("n_kv", "n_embd")),
        "layers.{bid}.self_attn.v_proj.weight": ("blk.{bid}.attn_v.weight", ("n_kv", "n_embd")),
        "layers.{bid}.self_attn.o_proj.weight": ("blk.{bid}.attn_output.weight", ("n_embd", "n_q")),
        "layers.{bid}.self_attn.rotary_emb.inv_freq": None,  # a buffer, computed from the config
        "layers.{bid}.post_attention_layernorm.weight": ("blk.{bid}.ffn_norm.weight", ("n_embd",)),
        "layers.{bid}.mlp.gate_proj.weight": ("blk.{bid}.ffn_gate.weight", ("n_ff", "n_embd")),
        "layers.{bid}.mlp.up_proj.weight": ("blk.{bid}.ffn_up.weight", ("n_ff", "n_embd")),
        "layers.{bid}.mlp.down_proj.weight": ("blk.{bid}.ffn_down.weight", ("n_embd", "n_ff")),
    },
    after_layers={
        "norm.weight": ("output_norm.weight", ("n_embd",)),
    },
)
# A Llama with biases, in the order in which the demo's file has them.
QWEN2: Final = replace(
    LLAMA,
    layer={
        "layers.{bid}.input_layernorm.weight": ("blk.{bid}.attn_norm.weight", ("n_embd",)),
        "layers.{bid}.self_attn.q_proj.weight": ("blk.{bid}.attn_q.weight", ("n_q", "n_embd")),
        "layers.{bid}.self_attn.q_proj.bias": ("blk.{bid}.attn_q.bias", ("n_q",)),
        "layers.{bid}.self_attn.k_proj.weight": ("blk.{bid}.attn_k.weight", ("n_kv", "n_embd")),
        "layers.{bid}.self_attn.k_proj.bias": ("blk.{bid}.attn_k.bias", ("n_kv",)),
        "layers.{bid}.self_attn.v_proj.weight": ("blk.{bid}.attn_v.weight", ("n_kv", "n_embd")),
        "layers.{bid}.self_attn.v_proj.bias": ("blk.{bid}.attn_v.bias", ("n_kv",)),
        **LLAMA.layer,
    },
)
# A Llama that normalizes each head of its queries and keys.
QWEN3: Final = replace(
    LLAMA,
    layer={
        **LLAMA.layer,
        "layers.{bid}.self_attn.q_norm.weight": ("blk.{bid}.attn_q_norm.weight", ("n_head_rows",)),
        "layers.{bid}.self_attn.k_norm.weight": ("blk.{bid}.attn_k_norm.weight", ("n_head_rows",)),
    },
)
HEAD: Final = Part(
    prefixes=("language_model.lm_head.", "lm_head.", "model.language_model.lm_head."),
    before_layers={
        "weight": ("output.weight", ("n_vocab", "n_embd")),
    },
)

SIGLIP: Final = Part(
    prefixes=(
        "vision_tower.vision_model.",
        "vision_tower.",
        "model.vision_tower.vision_model.",
        "model.vision_tower.",
    ),
    before_layers={
        "embeddings.patch_embedding.weight": ("v.patch_embd.weight", ("v_embd", "rgb", "v_patch", "v_patch")),
        "embeddings.patch_embedding.bias": ("v.patch_embd.bias", ("v_embd",)),
        "embeddings.position_embedding.weight": ("v.position_embd.weight", ("v_positions", "v_embd")),
        "embeddings.position_ids": None,  # a buffer: 0, 1, 2, …
    },
    layer={
        "encoder.layers.{bid}.layer_norm1.weight": ("v.blk.{bid}.ln1.weight", ("v_embd",)),
        "encoder.layers.{bid}.layer_norm1.bias": ("v.blk.{bid}.ln1.bias", ("v_embd",)),
        "encoder.layers.{bid}.self_attn.q_proj.weight": ("v.blk.{bid}.attn_q.weight", ("v_embd", "v_embd")),
        "encoder.layers.{bid}.self_attn.q_proj.bias": ("v.blk.{bid}.attn_q.bias", ("v_embd",)),
        "encoder.layers.{bid}.self_attn.k_proj.weight": ("v.blk.{bid}.attn_k.weight", ("v_embd", "v_embd")),
        "encoder.layers.{bid}.self_attn.k_proj.bias": ("v.blk.{bid}.attn_k.bias", ("v_embd",)),
        "encoder.layers.{bid}.self_attn.v_proj.weight": ("v.blk.{bid}.attn_v.weight", ("v_embd", "v_embd")),
        "encoder.layers.{bid}.self_attn.v_proj.bias": ("v.blk.{bid}.attn_v.bias", ("v_embd",)),
        "encoder.layers.{bid}.self_attn.out_proj.weight": (
            "v.blk.{bid}.attn_out.weight",
            ("v_embd", "v_embd"),
        ),
        "encoder.layers.{bid}.self_attn.out_proj.bias": ("v.blk.{bid}.attn_out.bias", ("v_embd",)),
        "encoder.layers.{bid}.layer_norm2.weight": ("v.blk.{bid}.ln2.weight", ("v_embd",)),
        "encoder.layers.{bid}.layer_norm2.bias": ("v.blk.{bid}.ln2.bias", ("v_embd",)),
        "encoder.layers.{bid}.mlp.fc1.weight": ("v.blk.{bid}.ffn_up.weight", ("v_ff", "v_embd")),
        "encoder.layers.{bid}.mlp.fc1.bias": ("v.blk.{bid}.ffn_up.bias", ("v_ff",)),
        "encoder.layers.{bid}.mlp.fc2.weight": ("v.blk.{bid}.ffn_down.weight", ("v_embd", "v_ff")),
        "encoder.layers.{bid}.mlp.fc2.bias": ("v.blk.{bid}.ffn_down.bias", ("v_embd",)),
    },
    after_layers={
        "post_layernorm.weight": None,  # LLaVA takes hidden states from before it
        "post_layernorm.bias": None,
        # The pooling head, which LLaVA has no use for; "vision_use_head" false leaves it out.
        "head.probe": None,
        "head.attention.in_proj_weight": None,
        "head.attention.in_proj_bias": None,
        "head.attention.out_proj.weight": None,
        "head.attention.out_proj.bias": None,
        "head.layernorm.weight": None,
        "head.layernorm.bias": None,
        "head.mlp.fc1.weight": None,
        "head.mlp.fc1.bias": None,
        "head.mlp.fc2.weight": None,
        "head.mlp.fc2.bias": None,
    },
)
CLIP: Final = replace(
    SIGLIP,
    before_layers={
        "embeddings.class_embedding": ("v.class_embd", ("v_embd",)),
        "embeddings.patch_embedding.weight": ("v.patch_embd.weight", ("v_embd", "rgb", "v_patch", "v_patch")),
        "embeddings.position_embedding.weight": ("v.position_embd.weight", ("v_positions", "v_embd")),
        "embeddings.position_ids": None,
        "pre_layrnorm.weight": ("v.pre_ln.weight", ("v_embd",)),
        "pre_layrnorm.bias": ("v.pre_ln.bias", ("v_embd",)),
    },
    after_layers={
        "post_layernorm.weight": None,
        "post_layernorm.bias": None,
    },
)
# The same, but the projector sees what comes behind its last norm, and there is no pooling head.
IDEFICS3_TOWER: Final = replace(
    SIGLIP,
    prefixes=("model.vision_model.",),
    after_layers={
        "post_layernorm.weight": ("v.post_ln.weight", ("v_embd",)),
        "post_layernorm.bias": ("v.post_ln.bias", ("v_embd",)),
    },
)
# A Mistral's layers without a cache: no biases, RMS norms, a gate; positions are rotations.
PIXTRAL: Final = Part(
    prefixes=("vision_tower.", "model.vision_tower."),
    before_layers={
        "patch_conv.weight": ("v.patch_embd.weight", ("v_embd", "rgb", "v_patch", "v_patch")),
        "ln_pre.weight": ("v.pre_ln.weight", ("v_embd",)),
    },
    layer={
        f"transformer.layers.{{bid}}.{name}.weight": (f"v.blk.{{bid}}.{here}.weight", dims)
        for name, here, dims in (
            ("attention_norm", "ln1", ("v_embd",)),
            ("attention.q_proj", "attn_q", ("v_embd", "v_embd")),
            ("attention.k_proj", "attn_k", ("v_embd", "v_embd")),
            ("attention.v_proj", "attn_v", ("v_embd", "v_embd")),
            ("attention.o_proj", "attn_out", ("v_embd", "v_embd")),
            ("ffn_norm", "ln2", ("v_embd",)),
            ("feed_forward.gate_proj", "ffn_gate", ("v_ff", "v_embd")),
            ("feed_forward.up_proj", "ffn_up", ("v_ff", "v_embd")),
            ("feed_forward.down_proj", "ffn_down", ("v_embd", "v_ff")),
        )
    },
)
# What ends each row of a picture's tiles, one more embedding beside those of the vocabulary.
IMAGE_NEWLINE: Final = Part(
    prefixes=("", "model."),
    before_layers={
        "image_newline": ("model.image_newline", ("n_embd",)),
    },
)
# InternVL's, as transformers has it.
INTERN_VIT: Final = replace(
    SIGLIP,
    before_layers={
        "embeddings.cls_token": ("v.class_embd", ("one", "one", "v_embd")),
        "embeddings.patch_embeddings.projection.weight": (
            "v.patch_embd.weight",
            ("v_embd", "rgb", "v_patch", "v_patch"),
        ),
        "embeddings.patch_embeddings.projection.bias": ("v.patch_embd.bias", ("v_embd",)),
        "embeddings.position_embeddings": ("v.position_embd.weight", ("one", "v_positions", "v_embd")),
        "embeddings.mask_token": None,  # for training
    },
    layer={
        "encoder.layer.{bid}.layernorm_before.weight": ("v.blk.{bid}.ln1.weight", ("v_embd",)),
        "encoder.layer.{bid}.layernorm_before.bias": ("v.blk.{bid}.ln1.bias", ("v_embd",)),
        "encoder.layer.{bid}.attention.q_proj.weight": ("v.blk.{bid}.attn_q.weight", ("v_embd", "v_embd")),
        "encoder.layer.{bid}.attention.q_proj.bias": ("v.blk.{bid}.attn_q.bias", ("v_embd",)),
        "encoder.layer.{bid}.attention.k_proj.weight": ("v.blk.{bid}.attn_k.weight", ("v_embd", "v_embd")),
        "encoder.layer.{bid}.attention.k_proj.bias": ("v.blk.{bid}.attn_k.bias", ("v_embd",)),
        "encoder.layer.{bid}.attention.v_proj.weight": ("v.blk.{bid}.attn_v.weight", ("v_embd", "v_embd")),
        "encoder.layer.{bid}.attention.v_proj.bias": ("v.blk.{bid}.attn_v.bias", ("v_embd",)),
        "encoder.layer.{bid}.attention.q_norm.weight": ("v.blk.{bid}.attn_q_norm.weight", ("v_embd",)),
        "encoder.layer.{bid}.attention.k_norm.weight": ("v.blk.{bid}.attn_k_norm.weight", ("v_embd",)),
        "encoder.layer.{bid}.attention.projection_layer.weight": (
            "v.blk.{bid}.attn_out.weight",
            ("v_embd", "v_embd"),
        ),
        "encoder.layer.{bid}.attention.projection_layer.bias": ("v.blk.{bid}.attn_out.bias", ("v_embd",)),
        "encoder.layer.{bid}.lambda_1": ("v.blk.{bid}.ls1", ("v_embd",)),
        "encoder.layer.{bid}.layernorm_after.weight": ("v.blk.{bid}.ln2.weight", ("v_embd",)),
        "encoder.layer.{bid}.layernorm_after.bias": ("v.blk.{bid}.ln2.bias", ("v_embd",)),
        "encoder.layer.{bid}.mlp.fc1.weight": ("v.blk.{bid}.ffn_up.weight", ("v_ff", "v_embd")),
        "encoder.layer.{bid}.mlp.fc1.bias": ("v.blk.{bid}.ffn_up.bias", ("v_ff",)),
        "encoder.layer.{bid}.mlp.fc2.weight": ("v.blk.{bid}.ffn_down.weight", ("v_embd", "v_ff")),
        "encoder.layer.{bid}.mlp.fc2.bias": ("v.blk.{bid}.ffn_down.bias", ("v_embd",)),
        "encoder.layer.{bid}.lambda_2": ("v.blk.{bid}.ls2", ("v_embd",)),
    },
    after_layers={},
)
# The same in InternVL's own code, with queries, keys and values as one matrix.
INTERN_VIT_6B: Final = Part(
    prefixes=("vision_model.",),
    before_layers={
        "embeddings.class_embedding": ("v.class_embd", ("one", "one", "v_embd")),
        "embeddings.patch_embedding.weight": ("v.patch_embd.weight", ("v_embd", "rgb", "v_patch", "v_patch")),
        "embeddings.patch_embedding.bias": ("v.patch_embd.bias", ("v_embd",)),
        "embeddings.position_embedding": ("v.position_embd.weight", ("one", "v_positions", "v_embd")),
    },
    layer={
        "encoder.layers.{bid}.norm1.weight": ("v.blk.{bid}.ln1.weight", ("v_embd",)),
        "encoder.layers.{bid}.norm1.bias": ("v.blk.{bid}.ln1.bias", ("v_embd",)),
        "encoder.layers.{bid}.attn.qkv.weight": ("v.blk.{bid}.attn_qkv.weight", ("v_qkv", "v_embd")),
        "encoder.layers.{bid}.attn.qkv.bias": ("v.blk.{bid}.attn_qkv.bias", ("v_qkv",)),
        "encoder.layers.{bid}.attn.q_norm.weight": ("v.blk.{bid}.attn_q_norm.weight", ("v_embd",)),
        "encoder.layers.{bid}.attn.k_norm.weight": ("v.blk.{bid}.attn_k_norm.weight", ("v_embd",)),
        "encoder.layers.{bid}.attn.proj.weight": ("v.blk.{bid}.attn_out.weight", ("v_embd", "v_embd")),
        "encoder.layers.{bid}.attn.proj.bias": ("v.blk.{bid}.attn_out.bias", ("v_embd",)),
        "encoder.layers.{bid}.ls1": ("v.blk.{bid}.ls1", ("v_embd",)),
        "encoder.layers.{bid}.norm2.weight": ("v.blk.{bid}.ln2.weight", ("v_embd",)),
        "encoder.layers.{bid}.norm2.bias": ("v.blk.{bid}.ln2.bias", ("v_embd",)),
        "encoder.layers.{bid}.mlp.fc1.weight": ("v.blk.{bid}.ffn_up.weight", ("v_ff", "v_embd")),
        "encoder.layers.{bid}.mlp.fc1.bias": ("v.blk.{bid}.ffn_up.bias", ("v_ff",)),
        "encoder.layers.{bid}.mlp.fc2.weight": ("v.blk.{bid}.ffn_down.weight", ("v_embd", "v_ff")),
        "encoder.layers.{bid}.mlp.fc2.bias": ("v.blk.{bid}.ffn_down.bias", ("v_embd",)),
        "encoder.layers.{bid}.ls2": ("v.blk.{bid}.ls2", ("v_embd",)),
    },
)
PROJECTOR: Final = Part(
    prefixes=("multi_modal_projector.", "model.multi_modal_projector."),
    before_layers={
        "linear_1.weight": ("mm.1.weight", ("n_embd", "v_features")),
        "linear_1.bias": ("mm.1.bias", ("n_embd",)),
        "linear_2.weight": ("mm.2.weight", ("n_embd", "n_embd")),
        "linear_2.bias": ("mm.2.bias", ("n_embd",)),
    },
)
IDEFICS3_CONNECTOR: Final = Part(
    prefixes=("model.connector.modality_projection.",),
    before_layers={
        "proj.weight": ("mm.fc.weight", ("n_embd", "v_features")),
    },
)
IDEFICS2_PROJECTION: Final = Part(
    prefixes=("model.connector.modality_projection.",),
    before_layers={
        "gate_proj.weight": ("mm.gate.weight", ("n_ff", "v_features")),
        "up_proj.weight": ("mm.up.weight", ("n_ff", "v_features")),
        "down_proj.weight": ("mm.down.weight", ("n_embd", "n_ff")),
    },
)
IDEFICS2_RESAMPLER: Final = Part(
    prefixes=("model.connector.perceiver_resampler.",),
    before_layers={
        "latents": ("resampler.latents", ("r_latents", "n_embd")),
    },
    layer={
        f"layers.{{bid}}.{name}.weight": (f"resampler.blk.{{bid}}.{here}.weight", dims)
        for name, here, dims in (
            ("input_latents_norm", "ln_latents", ("n_embd",)),
            ("input_context_norm", "ln_context", ("n_embd",)),
            ("self_attn.q_proj", "attn_q", ("r_q", "n_embd")),
            ("self_attn.k_proj", "attn_k", ("r_kv", "n_embd")),
            ("self_attn.v_proj", "attn_v", ("r_kv", "n_embd")),
            ("self_attn.o_proj", "attn_out", ("n_embd", "r_q")),
            ("post_attention_layernorm", "ln2", ("n_embd",)),
            ("mlp.gate_proj", "ffn_gate", ("r_ff", "n_embd")),
            ("mlp.up_proj", "ffn_up", ("r_ff", "n_embd")),
            ("mlp.down_proj", "ffn_down", ("n_embd", "r_ff")),
        )
    },
    after_layers={
        "norm.weight": ("resampler.norm.weight", ("n_embd",)),
    },
)
INTERNVL_PROJECTOR: Final = replace(
    PROJECTOR,
    before_layers={
        "layer_norm.weight": ("mm.norm.weight", ("v_features",)),
        "layer_norm.bias": ("mm.norm.bias", ("v_features",)),
        **PROJECTOR.before_layers,
    },
)
INTERNVL_CHAT_PROJECTOR: Final = Part(
    prefixes=("mlp1.",),
    before_layers={
        "0.weight": ("mm.norm.weight", ("v_features",)),
        "0.bias": ("mm.norm.bias", ("v_features",)),
        "1.weight": ("mm.1.weight", ("n_embd", "v_features")),
        "1.bias": ("mm.1.bias", ("n_embd",)),
        "3.weight": ("mm.2.weight", ("n_embd", "n_embd")),
        "3.bias": ("mm.2.bias", ("n_embd",)),
    },
)
