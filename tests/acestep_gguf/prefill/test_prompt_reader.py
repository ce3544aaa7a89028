from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.decoding.decoder import Decoder
from acestep_gguf.decoding.kv_states import KVStates
from acestep_gguf.errors import BundleError, DecodeError
from acestep_gguf.llama.backend import Interrupted, StopFlag
from acestep_gguf.llama.binding import Context
from acestep_gguf.llama.key_value_state import KeyValueShape, KeyValueState
from acestep_gguf.options import CacheType, FlashAttention
from acestep_gguf.prefill import layers, prompt_reader
from acestep_gguf.prefill.rotation import Rotation
from acestep_gguf.prompt.segments import ImageInput, Segment
from acestep_gguf.storage.disk_cache import DiskCache
from tests.acestep_gguf.prefill.conftest import EMBEDS, RNG, N, Subject
from tests.support.float_layers import keys_and_values

FloatArray = npt.NDArray[np.float32]

PICTURE, OTHER = ImageInput(b"a", N), ImageInput(b"b", N)
ROWS = {PICTURE.key: EMBEDS, OTHER.key: EMBEDS[::-1].copy()}
TEXT = tuple(RNG.integers(0, 300, 8).tolist())
LONG_TEXT = tuple(RNG.integers(0, 300, 30).tolist())
QUESTION = (5, 6, 7)
PROMPTS: dict[str, list[Segment]] = {
    "a picture first": [PICTURE, QUESTION],
    "text first": [TEXT, PICTURE, QUESTION],
    "two pictures": [TEXT, PICTURE, TEXT, OTHER, QUESTION],
    "a long text": [LONG_TEXT],
    "a picture last": [TEXT, PICTURE],
}


@pytest.fixture(autouse=True)
def least_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read so few positions that tests are quick."""
    monkeypatch.setattr(prompt_reader, "LEAST_ROWS", 16)


def logits(context: Context, prompt: list[Segment], subject: Subject, *, in_int8: bool) -> FloatArray:
    Decoder(context, reader=subject.reader() if in_int8 else None).prefill(prompt, ROWS)
    return context.logits()


def divergence(reference: FloatArray, other: FloatArray) -> float:
    """KL divergence of the next token."""
    p, q = (values - np.logaddexp.reduce(values) for values in (reference, other))
    return float((np.exp(p) * (p - q)).sum())


# llama.cpp's flash attention over many positions rounds to float16, whatever the cache holds.
@pytest.mark.parametrize(
    ("cache_type", "flash_attn", "limit"),
    [("f32", "off", 1e-3), ("f32", "on", 0.01), ("f16", "off", 0.05), ("f16", "on", 0.05)],
)
def test_keys_and_values_in_float32_give_the_logits_that_llama_cpp_gives(
    subject: Subject, cache_type: CacheType, flash_attn: FlashAttention, limit: float
) -> None:
    shape = subject.decoder.shape
    rotation = Rotation.of(subject.decoder.header, shape.n_embd_head)
    computed = keys_and_values(subject.checkpoint, rotation, EMBEDS)
    with subject.context(cache_type, flash_attn) as context:
        context.decode_embeds(EMBEDS, 0)
        context.decode_tokens(QUESTION, N, n_outputs=1)
        own = context.logits()
        context.keep(0)
        layout = KeyValueShape.of(
            context, n_layers=shape.n_layer, n_head_kv=shape.n_head_kv, n_embd_head=shape.n_embd_head
        )
        state = KeyValueState(context, layout, N)
        for bid, (keys, values) in enumerate(computed):
            state.set(bid, keys, values)
        state.hand_over()
        context.decode_tokens(QUESTION, N, n_outputs=1)
        assert np.abs(context.logits() - own).max() < limit
        assert context.logits().argmax() == own.argmax()


@pytest.mark.parametrize("name", PROMPTS)
def test_reading_in_int8_comes_close_to_llama_cpp(subject: Subject, name: str) -> None:
    with subject.context() as context:
        own = logits(context, PROMPTS[name], subject, in_int8=False)
        context.keep(0)
        read = logits(context, PROMPTS[name], subject, in_int8=True)
    assert 0 < divergence(own, read) < 2e-3


@pytest.mark.parametrize("cache_type", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("flash_attn", ["on", "off", "auto"])
def test_into_every_kind_of_cache(qwen2: Subject, cache_type: CacheType, flash_attn: FlashAttention) -> None:
    prompt = PROMPTS["two pictures"]
    with qwen2.context() as reference, qwen2.context(cache_type, flash_attn) as context:
        own = logits(reference, prompt, qwen2, in_int8=False)
        assert 0 < divergence(own, logits(context, prompt, qwen2, in_int8=True)) < 2e-3


def test_short_parts_are_llama_cpps_own(qwen2: Subject) -> None:
    prompt: list[Segment] = [TEXT, QUESTION]
    with qwen2.context() as context:
        own = logits(context, prompt, qwen2, in_int8=False)
        context.keep(0)
        assert np.array_equal(logits(context, prompt, qwen2, in_int8=True), own)


def test_the_same_bits_whatever_was_read_before(qwen2: Subject) -> None:
    prompt = PROMPTS["two pictures"]
    with qwen2.context() as context:
        decoder = Decoder(context, reader=qwen2.reader())
        decoder.prefill(prompt, ROWS)
        whole = context.logits()
        decoder.reuse([TEXT, PICTURE, LONG_TEXT])
        decoder.prefill([TEXT, PICTURE, LONG_TEXT], ROWS)
        assert decoder.reuse(prompt) == len(TEXT) + N
        decoder.prefill(prompt, ROWS)
        assert np.array_equal(context.logits(), whole)


@pytest.mark.parametrize(("first", "n_batch"), [([LONG_TEXT], len(LONG_TEXT)), ([TEXT, PICTURE], 128)])
def test_what_llama_cpp_read_the_end_of_is_read_again(
    qwen2: Subject, tmp_path: Path, first: list[Segment], n_batch: int
) -> None:
    """The last position of a prompt is llama.cpp's; inside of a longer one, it is the reader's."""
    longer: list[Segment] = [*first[:-1], first[-1], QUESTION]
    if isinstance(first[-1], tuple):
        longer = [*first[:-1], (*first[-1], *QUESTION)]
    with closing(DiskCache(tmp_path)) as cache, qwen2.context(n_batch=n_batch) as context:
        states, reader = KVStates(cache, "int8"), qwen2.reader()
        Decoder(context, reader=reader).prefill(longer, ROWS)
        whole = context.logits()
        context.keep(0)
        decoder = Decoder(context, states, reader=reader)
        decoder.prefill(first, ROWS)
        cache.write()
        cache.finish_writing()
        assert decoder.reuse(longer) == len(first[0]) * (len(first) - 1)
        decoder.prefill(longer, ROWS)
        assert np.array_equal(context.logits(), whole)


def test_calls_of_few_rows_attend_to_those_before(qwen2: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    with qwen2.context() as context:
        own = logits(context, PROMPTS["text first"], qwen2, in_int8=False)
        context.keep(0)
        monkeypatch.setattr(layers, "rows_at_once", lambda _n_head, _n_total: 7)
        assert divergence(own, logits(context, PROMPTS["text first"], qwen2, in_int8=True)) < 2e-3


def test_other_sequences_go_on_between_two_layers(qwen2: Subject) -> None:
    prompt = PROMPTS["text first"]
    with qwen2.context() as alone, qwen2.context(n_seq_max=3) as context:
        own = logits(alone, prompt, qwen2, in_int8=True)
        other = Decoder(context, sequence=1)
        other.append([1])
        reading = Decoder(context, sequence=2, reader=qwen2.reader()).prefill_calls(prompt, ROWS)
        n_steps = 0
        for _ in reading:
            n_steps += 1
            last = context.logits() if n_steps > 3 else None
            other.append([n_steps])
        assert n_steps == 1 + (qwen2.decoder.shape.n_layer + 1) + 1  # text, layers and picture, question
        assert last is not None
        assert np.allclose(last, own, atol=1e-4)
        assert other.n_past == 1 + n_steps


def test_a_state_on_disk_is_taken_up(qwen2: Subject, tmp_path: Path) -> None:
    prompt = PROMPTS["text first"]
    with closing(DiskCache(tmp_path)) as cache, qwen2.context() as context:
        states = KVStates(cache, "int8")
        decoder = Decoder(context, states, reader=qwen2.reader())
        decoder.prefill(prompt, ROWS)
        whole = context.logits()
        cache.write()
        cache.finish_writing()
        later = Decoder(context, states)
        context.keep(0)
        assert later.reuse(prompt) == len(TEXT) + N
        later.prefill(prompt, ROWS)
        assert np.array_equal(context.logits(), whole)


def test_what_was_read_stays_when_it_is_stopped(qwen2: Subject) -> None:
    with qwen2.context() as context:
        decoder, stop = Decoder(context, reader=qwen2.reader()), StopFlag()
        context.watch(stop)
        calls = decoder.prefill_calls(PROMPTS["text first"], ROWS)
        next(calls)
        next(calls)  # the first layer of the picture
        stop.set()
        with pytest.raises(Interrupted):
            next(calls)
        assert decoder.n_past == context.n_past() == len(TEXT)
        context.watch(StopFlag())
        decoder.prefill(PROMPTS["text first"], ROWS)
        read = context.logits()
        decoder.reset()
        decoder.prefill(PROMPTS["text first"], ROWS)
        assert np.array_equal(context.logits(), read)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([0] * 20 + [10**6], "token id"),
        (np.full((20, 256), np.nan, np.float32), "not finite"),
        (np.zeros((20, 255), np.float32), "takes float32"),
    ],
)
def test_rows_that_cannot_be_read(qwen2: Subject, rows: list[int] | FloatArray, match: str) -> None:
    with qwen2.context() as context:
        with pytest.raises(DecodeError, match=match):
            list(qwen2.reader().read(context, rows, sequence=0))
        assert context.n_past() == 0


def test_damaged_weights_are_told(qwen2: Subject, tmp_path: Path) -> None:
    def damage(data: bytearray) -> None:
        # The scales of ffn_down, the last weight.
        data[-1024:] = np.full(256, np.nan, np.float32).tobytes()

    bundle = damaged(qwen2, tmp_path, damage)
    assert bundle.prefill is not None
    with qwen2.context() as context:
        reader = prompt_reader.PromptReader.open(tmp_path, bundle.prefill, qwen2.decoder, n_threads=1)
        decoder = Decoder(context, reader=reader)
        with pytest.raises(DecodeError, match="not finite"):
            decoder.prefill(PROMPTS["text first"], ROWS)
        assert decoder.n_past == context.n_past() == 0


def test_a_graph_that_gives_something_else_is_told(qwen2: Subject, tmp_path: Path) -> None:
    record = damaged(qwen2, tmp_path, lambda _: None).prefill
    assert record is not None
    model = onnx.load(tmp_path / record.file)
    last = next(node for node in model.graph.node if "key" in node.output)
    last.output[list(last.output).index("key")] = "unused"
    model.graph.node.append(onnx.helper.make_node("Identity", ["hidden_states"], ["key"]))
    model.graph.output[1].type.tensor_type.shape.CopyFrom(model.graph.input[0].type.tensor_type.shape)
    (tmp_path / record.file).write_bytes(model.SerializeToString())
    foreign = replace(record, bytes=(tmp_path / record.file).stat().st_size)
    with qwen2.context() as context:
        reader = prompt_reader.PromptReader.open(tmp_path, foreign, qwen2.decoder, n_threads=1)
        with pytest.raises(DecodeError, match="something else than keys and values"):
            list(reader.read(context, EMBEDS, sequence=0))


def test_layers_of_another_decoder(qwen2: Subject, tmp_path: Path) -> None:
    bundle = damaged(qwen2, tmp_path, lambda _: None)
    record = bundle.prefill
    assert record is not None
    half = record.data.bytes // record.n_layers
    (tmp_path / record.data.file).write_bytes((tmp_path / record.data.file).read_bytes()[:half])
    fewer = type(record)(
        file=record.file,
        bytes=record.bytes,
        sha256=record.sha256,
        data=type(record.data)(file=record.data.file, bytes=half, sha256=""),
        n_layers=1,
    )
    with pytest.raises(BundleError, match="not of this decoder"):
        prompt_reader.PromptReader.open(tmp_path, fewer, qwen2.decoder, n_threads=1)


def damaged(subject: Subject, folder: Path, damage: Callable[[bytearray], None]) -> Bundle:
    """A copy of the int8 layers in ``folder``, with other weights."""
    record = subject.bundle.prefill
    assert record is not None
    (folder / record.file).write_bytes((subject.folder / record.file).read_bytes())
    data = bytearray((subject.folder / record.data.file).read_bytes())
    damage(data)
    (folder / record.data.file).write_bytes(data)
    return subject.bundle
