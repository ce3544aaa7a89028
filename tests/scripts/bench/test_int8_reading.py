from scripts.bench.int8_reading import answers, cold_seconds, warm_prefill, warm_seconds
from scripts.bench.process_cost import Cost

FIRST = b'{"seconds": 3.0, "prefill_s": 2.0, "prompt_tokens": 1041}\n'
SECOND = b'{"seconds": 1.5, "prefill_s": 0.5, "prompt_tokens": 1041}\n'


def test_figures_of_a_process_that_is_asked_twice() -> None:
    noise = b"a library says something\n"
    times = [0.5] * len(noise) + [9.0] * len(FIRST) + [9.1] * len(noise) + [11.0] * len(SECOND)
    cost = Cost(stdout=noise + FIRST + noise + SECOND, byte_s=times)
    assert [one["seconds"] for one in answers(cost)] == [3.0, 1.5]
    assert cold_seconds(cost) == 9.0
    assert (warm_seconds(cost), warm_prefill(cost)) == (1.5, 0.5)
