"""What was measured, as data."""

from dataclasses import dataclass

from acestep_gguf.quality.statistics import Divergence, Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureQuestion:
    """A question about a picture, and the file that the picture came from."""

    picture: str
    question: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedAnswer:
    """An answer; ``n_alike`` of its ``n_tokens`` come before the first that differs from the best one's."""

    text: str
    n_tokens: int
    n_alike: int
    is_same: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedsError:
    """Cosines of image embeds to the best tower's: mean and least over the tokens of all pictures.

    The centred ones are without the mean token of each picture, which hides what sets its tokens apart.
    """

    cosine: float
    min_cosine: float
    centred_cosine: float
    min_centred_cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A decoder with a tower, and its answers next to the best one's, in the order of the questions.

    ``kl_divergence`` (of the best one's prediction from this one's), ``top_1`` (share of tokens where both
    would choose the same) and ``perplexity`` (this one's, of those tokens) are over the tokens of the best
    one's answers. ``bytes`` are those of both files, and seconds are for one picture and for one answer
    without it.
    """

    decoder: str
    tower: str
    bytes: int
    kl_divergence: Divergence
    top_1: Estimate
    perplexity: Estimate
    embeds: EmbedsError
    image_s: float
    answer_s: float
    answers: tuple[ComparedAnswer, ...]

    @property
    def n_same(self) -> int:
        """Answers that are the best one's, token by token."""
        return sum(answer.is_same for answer in self.answers)


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityReport:
    """All candidates; the first is the best one, which the others are compared with."""

    bundle: str
    asked: tuple[PictureQuestion, ...]
    candidates: tuple[Candidate, ...]

    @property
    def best(self) -> Candidate:
        """The candidate that the others are compared with."""
        return self.candidates[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCandidate:
    """A decoder that read a text; figures as of ``Candidate``, over the tokens that count of the text."""

    decoder: str
    bytes: int
    kl_divergence: Divergence
    top_1: Estimate
    perplexity: Estimate
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TextReport:
    """All decoders on a text, read in ``n_windows`` windows of ``n_ctx`` tokens.

    The first is the best one. ``base_perplexity`` is its own after its predictions were rounded as
    llama-perplexity rounds them: the "PPL(base)" that it prints.
    """

    bundle: str
    n_ctx: int
    n_windows: int
    base_perplexity: Estimate
    candidates: tuple[TextCandidate, ...]
