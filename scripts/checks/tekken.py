"""Compare Tekken's token ids with those of the tokenizers library, for the real vocabulary and random texts.

    pip download --no-deps mistral-common && unzip -j mistral_common-*.whl '*tekken_240911.json'
    python -m scripts.checks.tekken tekken_240911.json --texts 100000

tokenizer.json is made as transformers makes it (MistralConverter), and read as ``convert`` reads it. Needs
the extra ``reference``.
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from tokenizers import Tokenizer
from transformers.integrations.mistral.tokenizer import MistralConverter

from acestep_gguf.convert.checkpoint.tokenizer import read_vocabulary
from acestep_gguf.llama.tekken import Tekken, byte_tokens, normal_tokens
from tests.convert.test_published_pixtral import NAMED
from tests.support.texts import TEXTS

CHARACTERS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
COMMON = [character for character in CHARACTERS if ord(character) < 0x3000]
SIGNS = " \n\r\t/  .,!'AbCdéÉ1²"
WORDS = [word for text in TEXTS for word in text.split()]


def made_tokenizer(vocabulary: Path) -> Tokenizer:
    """The library's tokenizer of the file, which does not name its special tokens."""
    raw = json.loads(vocabulary.read_text())
    raw["special_tokens"] = [{"rank": rank, "token_str": token} for rank, token in enumerate(NAMED)]
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder) / "tekken.json"
        named.write_text(json.dumps(raw))
        tokenizer: Tokenizer = MistralConverter(str(named)).converted()
    tokenizer.encode_special_tokens = True
    return tokenizer


def our_tokenizer(raw: dict[str, Any]) -> Tekken:
    vocabulary = read_vocabulary(raw, len(raw["model"]["vocab"]), None)
    return Tekken(byte_tokens(normal_tokens(vocabulary.tokens, vocabulary.types)))


def drawn_text(rng: random.Random) -> str:
    parts = (CHARACTERS, COMMON, WORDS, SIGNS)
    return "".join(rng.choice(rng.choices(parts, (15, 25, 20, 40))[0]) for _ in range(rng.randint(0, 25)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    theirs = made_tokenizer(arguments.vocabulary)
    ours = our_tokenizer(json.loads(theirs.to_str()))
    rng = random.Random(arguments.seed)
    texts = [*TEXTS, *(drawn_text(rng) for _ in range(arguments.texts))]
    started = perf_counter()
    found = [ours.encode(text) for text in texts]
    seconds = perf_counter() - started
    differ = [
        text
        for text, ids in zip(texts, found, strict=True)
        if ids != theirs.encode(text, add_special_tokens=False).ids
    ]
    for text in differ[:10]:
        print(repr(text))
    print(f"{len(differ)} of {len(texts)} texts differ; ours took {1e6 * seconds / len(texts):.0f} us a text")
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
