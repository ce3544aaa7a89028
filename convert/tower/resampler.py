"""IDEFICS-2's connector: patches are projected, then latents that are learnt gather what there is in them."""

from acestep_gguf.convert.checkpoint.config import PerceiverConfig, VisionLanguageConfig
from acestep_gguf.convert.onnx_graph import MICROSOFT
from acestep_gguf.convert.tower.layers import Layers


def resampled(layers: Layers, features: str, config: VisionLanguageConfig) -> str:
    """Image embeds [B, n_latents, n_embd] of ``features`` [B, n_patches, hidden_size], a norm's output.

    As in transformers' ``Idefics2Connector`` of a picture that fills its pixels.
    """
    context = projected(layers, features, config)
    latents = first_latents(layers, context, config)
    for bid in range(perceiver_of(config).resampler_depth):
        latents = resampler_layer(layers, latents, context, bid, config)
    return last_norm(layers, latents, config)


def perceiver_of(config: VisionLanguageConfig) -> PerceiverConfig:
    """The resampler of a model that has one."""
    assert config.perceiver_config is not None  # noqa: S101
    return config.perceiver_config


def projected(layers: Layers, features: str, config: VisionLanguageConfig) -> str:
    """What latents look at, [B, n_patches, n_embd]."""
    source = layers.linear_input(features, is_foldable=True)
    gated = layers.linear_input(layers.gated(source, "mm.", config.text_config.hidden_act))
    return layers.linear(gated, "mm.down")


def first_latents(layers: Layers, context: str, config: VisionLanguageConfig) -> str:
    """Latents before the first layer, [B, n_latents, n_embd]: the same for each picture."""
    n_pictures = layers.graph.node("Shape", [context], "resampler.n_pictures", end=1)
    each = [perceiver_of(config).resampler_n_latents, config.text_config.hidden_size]
    sizes = [n_pictures, layers.graph.constant("resampler.latents.each", each)]
    shape = layers.graph.node("Concat", sizes, "resampler.latents.shape", axis=0)
    return layers.graph.node("Expand", [layers.weight("resampler.latents"), shape], "resampler.latents.all")


def resampler_layer(
    layers: Layers, latents: str, context: str, bid: int, config: VisionLanguageConfig
) -> str:
    """Latents after the layer ``bid``."""
    perceiver, block, eps = perceiver_of(config), f"resampler.blk.{bid}", config.resampler_eps
    normed = layers.norm(latents, f"{block}.ln_latents", eps)
    seen = [layers.norm(context, f"{block}.ln_context", eps), normed]
    both = layers.graph.node("Concat", seen, f"{block}.attn_seen", axis=1)
    found = _attended(layers, normed, both, block, perceiver)
    latents = layers.add(latents, found, f"{block}.attn_residual")
    normed = layers.linear_input(layers.norm(latents, f"{block}.ln2", eps), is_foldable=True)
    gated = layers.linear_input(layers.gated(normed, f"{block}.ffn_", perceiver.hidden_act))
    return layers.add(latents, layers.linear(gated, f"{block}.ffn_down"), f"{block}.out")


def last_norm(layers: Layers, latents: str, config: VisionLanguageConfig) -> str:
    """Image embeds [B, n_latents, n_embd]."""
    return layers.norm(latents, "resampler.norm", config.resampler_eps, "image_embeds")


def _attended(layers: Layers, latents: str, seen: str, block: str, perceiver: PerceiverConfig) -> str:
    """What latents gather from what is ``seen``, the context and themselves.

    Queries of a group share keys and values: they become rows of one head.
    """
    graph, n_latents, head = layers.graph, perceiver.resampler_n_latents, perceiver.resampler_head_dim
    n_kv = perceiver.num_key_value_heads
    n_group = perceiver.resampler_n_heads // n_kv

    def moved(x: str, name: str, before: list[int], order: list[int], after: list[int]) -> str:
        x = graph.node("Reshape", [x, graph.constant(f"{name}.before", before)], f"{name}.heads")
        x = graph.node("Transpose", [x], f"{name}.moved", perm=order)
        return graph.node("Reshape", [x, graph.constant(f"{name}.after", after)], name)

    queries = moved(
        layers.linear(latents, f"{block}.attn_q"),
        f"{block}.attn_grouped",
        [0, n_latents, n_kv, n_group, head],
        [0, 3, 1, 2, 4],
        [0, n_group * n_latents, n_kv * head],
    )
    inputs = [queries, *(layers.linear(seen, f"{block}.attn_{name}") for name in "kv")]
    found = graph.node("MultiHeadAttention", inputs, f"{block}.attn", domain=MICROSOFT, num_heads=n_kv)
    found = moved(
        found,
        f"{block}.attn_ungrouped",
        [0, n_group, n_latents, n_kv, head],
        [0, 2, 3, 1, 4],
        [0, n_latents, n_kv * n_group * head],
    )
    return layers.linear(found, f"{block}.attn_out")
