"""IDEFICS-2's connector: patches are projected, then latents that are learnt gather what there is in them."""

from acestep_gguf.convert.checkpoint.config import PerceiverConfig, VisionLanguageConfig
from acestep_gguf.convert.onnx_graph import MICROSOFT
from acestep_gguf.convert.tower.layers import Layers


def resampled(layers: Layers, features: str, config: VisionLanguageConfig) -> str:
    """Image embeds [B, n_latents, n_embd] of ``features`` [B, n_patches, hidden_size], a norm's output.

    As in transformers' ``Idefics2Connector`` of a picture that fills its pixels.
    """
    perceiver = config.perceiver_config
    assert perceiver is not None  # noqa: S101 (asked for where there is one)
    graph, eps = layers.graph, config.resampler_eps
    source = layers.linear_input(features, is_foldable=True)
    projected = layers.linear_input(layers.gated(source, "mm.", config.text_config.hidden_act))
    context = layers.linear(projected, "mm.down")

    n_pictures = graph.node("Shape", [context], "resampler.n_pictures", end=1)
    each = [perceiver.resampler_n_latents, config.text_config.hidden_size]
    shape = [n_pictures, graph.constant("resampler.latents.each", each)]
    shape_of_all = graph.node("Concat", shape, "resampler.latents.shape", axis=0)
    latents = graph.node(
        "Expand", [layers.weight("resampler.latents"), shape_of_all], "resampler.latents.all"
    )
    for bid in range(perceiver.resampler_depth):
        block = f"resampler.blk.{bid}"
        normed = layers.norm(latents, f"{block}.ln_latents", eps)
        seen = [layers.norm(context, f"{block}.ln_context", eps), normed]
        both = graph.node("Concat", seen, f"{block}.attn_seen", axis=1)
        found = _attended(layers, normed, both, block, perceiver)
        latents = layers.add(latents, found, f"{block}.attn_residual")
        normed = layers.linear_input(layers.norm(latents, f"{block}.ln2", eps), is_foldable=True)
        activated = layers.linear_input(layers.gated(normed, f"{block}.ffn_", perceiver.hidden_act))
        latents = layers.add(latents, layers.linear(activated, f"{block}.ffn_down"), f"{block}.out")
    return layers.norm(latents, "resampler.norm", eps, "image_embeds")


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
