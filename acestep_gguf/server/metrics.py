"""What /metrics says, for Prometheus: counts, times and sizes, nothing of what was asked."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from acestep_gguf.answer import Answer


class Metrics:
    """All figures of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "acestep_requests", "Requests, by path and status.", ("path", "status"), registry=self._registry
        )
        self._tokens = Counter(
            "acestep_tokens",
            "Tokens: of text and images in prompts, of those known from before, and of answers.",
            ("kind",),
            registry=self._registry,
        )
        self._answers = Counter(
            "acestep_answers", "Answers, by why they ended.", ("reason",), registry=self._registry
        )
        self._seconds = Counter(
            "acestep_seconds", "Seconds of work, by what was done.", ("work",), registry=self._registry
        )
        self.open = Gauge(
            "acestep_open_answers", "Answers that are written, or wait.", ("model",), registry=self._registry
        )
        self.first_token_s = Histogram(
            "acestep_first_token_seconds",
            "Seconds from a request to the first piece of its answer.",
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160),
            registry=self._registry,
        )

    def count(self, answer: Answer) -> None:
        """Add what an answer took."""
        usage, timings = answer.usage, answer.timings
        self._answers.labels(answer.finish_reason).inc()
        for kind, n_tokens in (
            ("text", usage.prompt_tokens - usage.image_tokens),
            ("image", usage.image_tokens),
            ("cached", usage.cached_tokens),
            ("answer", usage.completion_tokens),
        ):
            self._tokens.labels(kind).inc(n_tokens)
        for work, seconds in (
            ("load", timings.load_s),
            ("image", timings.image_s),
            ("prompt", timings.prefill_s),
            ("answer", timings.decode_s),
        ):
            self._seconds.labels(work).inc(seconds)

    def text(self) -> bytes:
        """In Prometheus' form."""
        return generate_latest(self._registry)
