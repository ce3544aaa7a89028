"""Reports with made-up figures."""

from acestep_gguf.quality.report import (
    Candidate,
    ComparedAnswer,
    EmbedsError,
    TextCandidate,
    TextReport,
)
from acestep_gguf.quality.statistics import Divergence, Estimate


def divergence_around(value: float) -> Divergence:
    mean, p90, p99 = (Estimate(value * n, value * n * 0.8, value * n * 1.5) for n in (1, 3, 10))
    return Divergence(mean=mean, p90=p90, p99=p99)


def candidate(
    decoder: str,
    text: str,
    n_alike: int = 2,
    *,
    tower: str = "float32",
    megabytes: float = 12.345678,
    divergence: float = 0.01234,
) -> Candidate:
    return Candidate(
        decoder=decoder,
        tower=tower,
        bytes=round(megabytes * 1e6),
        kl_divergence=divergence_around(divergence),
        top_1=Estimate(0.975, 0.9512, 0.9876),
        perplexity=Estimate(1.23456, 1.2, 1.34567),
        embeds=EmbedsError(cosine=0.9999, min_cosine=0.99, centred_cosine=0.995, min_centred_cosine=0.95),
        image_s=0.5,
        answer_s=1.25,
        answers=(ComparedAnswer(text=text, n_tokens=3, n_alike=n_alike, is_same=n_alike == 3),),
    )


def text_report() -> TextReport:
    candidates = tuple(
        TextCandidate(
            decoder=decoder,
            bytes=n_bytes,
            kl_divergence=divergence_around(divergence),
            top_1=Estimate(0.9, None, None),
            perplexity=Estimate(12.5, None, None),
            seconds=3.21,
        )
        for decoder, n_bytes, divergence in (("F32", 4_000_000, 0.0), ("Q4_K_M", 1_000_000, 0.0123))
    )
    return TextReport(
        bundle="Tiny",
        n_ctx=512,
        n_windows=3,
        base_perplexity=Estimate(12.6, None, None),
        candidates=candidates,
    )
