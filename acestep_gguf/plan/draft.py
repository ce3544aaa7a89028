"""The bundle of a draft model: what planning and loading need of it."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from acestep_gguf.bundle.decoder_info import check_vocabulary
from acestep_gguf.bundle.gguf_header import GGUFHeader, StringArray
from acestep_gguf.bundle.names import VisionPrecision
from acestep_gguf.errors import UsageError
from acestep_gguf.plan.bundle_model import BundleModel, DecoderModel
from acestep_gguf.plan.machine_settings import MachineSettings, machine_settings
from acestep_gguf.plan.settings import Settings


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Draft:
    """A bundle whose default decoder guesses for another one.

    Args:
        bundle: the model.
        n_common: tokens that both vocabularies have.
        vision: precision of its tower, None if it will see no pictures.
        machine_settings: what suits the machine.
    """

    bundle: BundleModel
    n_common: int
    vision: VisionPrecision | None
    machine_settings: MachineSettings

    @property
    def decoder(self) -> DecoderModel:
        """The decoder that guesses."""
        return self.bundle.decoder(self.bundle.bundle.decoders.default)

    def settings(self, target: Settings) -> Settings:
        """How it is run beside a decoder with these settings, of whose context it may see less."""
        return Settings(
            quant=self.bundle.bundle.decoders.default,
            n_ctx=min(target.n_ctx, self.decoder.shape.n_ctx_train),
            op_offload=target.op_offload,
            vision=self.vision,
            **asdict(replace(self.machine_settings, n_seq_max=1)),
        )


def open_draft(folder: Path, target: BundleModel, quant: str | None = None) -> Draft:
    """The bundle in ``folder``, to guess for the decoder ``quant`` of ``target``.

    Raises:
        BundleError: no bundle, or a damaged one.
        UnsupportedModelError: a decoder of another architecture.
        UsageError: it has another vocabulary, or no tower where the other one has one.
    """
    model = BundleModel(folder)
    pictures = target.bundle.vision is not None
    if pictures and model.bundle.vision is None:
        raise UsageError(
            f"{folder} has no vision tower, so it cannot see pictures: choose another draft.",
            settings=["draft"],
        )
    settings, _ = machine_settings(model.bundle, model.bundle.decoder(), pictures=pictures)
    header = model.decoder(model.bundle.decoders.default).header
    check_vocabulary(header, model.bundle.prompt, model.bundle.image)
    return Draft(
        bundle=model,
        n_common=_n_common_tokens(header, target.decoder(target.quants(quant)[0]).header),
        vision=model.vision() if pictures else None,
        machine_settings=settings,
    )


def _n_common_tokens(draft: GGUFHeader, target: GGUFHeader) -> int:
    """How many tokens both have; one may have more, which pad its vocabulary to a round number."""
    texts = [_tokens(header) for header in (draft, target)]
    n_common = min(map(len, texts))
    if texts[0][:n_common] != texts[1][:n_common]:
        raise UsageError(
            f"{draft.path} has another vocabulary than {target.path}: choose another draft.",
            settings=["draft"],
        )
    return n_common


def _tokens(header: GGUFHeader) -> list[bytes]:
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, StringArray)  # noqa: S101 (decoder_info checked it)
    return tokens.read()
