"""Positions of pictures of other sizes next to Idefics3's own arithmetic in torch."""

import pytest

from acestep_gguf.convert.tower.position_embedding import fractional_buckets

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("n_table", [16, 26, 27, 32, 70])
def test_positions_are_those_of_transformers(n_table: int) -> None:
    import torch
    from transformers import Idefics3VisionConfig
    from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionEmbeddings

    config = Idefics3VisionConfig(hidden_size=1, num_channels=1, image_size=n_table, patch_size=1)
    embeddings = Idefics3VisionEmbeddings(config)
    with torch.no_grad():
        embeddings.patch_embedding.weight.zero_()
        embeddings.patch_embedding.bias.zero_()
        embeddings.position_embedding.weight[:, 0] = torch.arange(n_table**2)
        for n_side in range(1, 101):
            found = embeddings(torch.zeros(1, 1, n_side, n_side), torch.ones(1, n_side, n_side).bool())
            ours = fractional_buckets(n_table, n_side)
            expected = [int(row * n_table + column) for row in ours for column in ours]
            assert found[0, :, 0].int().tolist() == expected
