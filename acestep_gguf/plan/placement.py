"""Which device holds what of a decoder. Device 0 is RAM with the CPU, 1 and up are GPUs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

RAM: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Devices of each layer's attention, MLP and KV cache, and of the output matrix.

    Token embeddings are always in RAM, as llama.cpp has it.
    """

    attention: tuple[int, ...]
    ffn: tuple[int, ...]
    kv: tuple[int, ...]
    output: int
    n_gpus: int

    @classmethod
    def in_ram(cls, n_layer: int, *, n_gpus: int = 0) -> Self:
        """Everything in RAM."""
        layers = (RAM,) * n_layer
        return cls(attention=layers, ffn=layers, kv=layers, output=RAM, n_gpus=n_gpus)

    @classmethod
    def of(
        cls,
        n_layer: int,
        n_gpu_layers: int,
        *,
        n_attention_only: int = 0,
        kv_on_gpu: bool = True,
        gpu_shares: Sequence[int] = (1,),
    ) -> Self:
        """llama.cpp's placement: the last ``n_gpu_layers`` on GPUs; the output matrix is one, the last.

        The first ``n_attention_only`` of them leave their MLP in RAM. ``gpu_shares`` are layers for each
        GPU, one after the other.
        """
        first = max(0, n_layer + 1 - n_gpu_layers)  # the output counts as layer n_layer
        if n_gpu_layers == 0:
            return cls.in_ram(n_layer, n_gpus=len(gpu_shares))
        devices = [RAM] * first
        for gpu, share in enumerate(gpu_shares, 1):
            devices += [gpu] * share
        devices += [len(gpu_shares)] * (n_layer + 1 - len(devices))
        attention = tuple(devices[:n_layer])
        ffn = tuple(
            RAM if first <= layer < first + n_attention_only else device
            for layer, device in enumerate(attention)
        )
        kv = attention if kv_on_gpu else (RAM,) * n_layer
        return cls(attention=attention, ffn=ffn, kv=kv, output=devices[n_layer], n_gpus=len(gpu_shares))
