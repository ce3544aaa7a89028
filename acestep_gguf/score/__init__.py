"""The benchmarks that the card quotes: official files in, rules that find answers, the figures of papers."""
