import threading
import time

import pytest

from acestep_gguf.engine.turns import Stopwatch, Turnstile
from acestep_gguf.errors import UsageError


def test_one_thread_at_a_time() -> None:
    turnstile, inside, most = Turnstile(), 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with turnstile.turn():
                inside += 1
                most = max(most, inside)
                time.sleep(0.0001)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_thread_does_not_wait_for_itself() -> None:
    turnstile = Turnstile()
    with turnstile.turn():
        assert turnstile.is_mine()
        with pytest.raises(UsageError), turnstile.turn():
            pass
    assert not turnstile.is_mine()
    with turnstile.turn():
        pass


def test_a_turn_is_taken_over_by_another_thread() -> None:
    turnstile = Turnstile()
    with turnstile.turn():
        other = threading.Thread(target=turnstile.take_over)
        other.start()
        other.join()
        assert not turnstile.is_mine()
        turnstile.take_over()
        assert turnstile.is_mine()


def test_the_turn_is_given_back_after_an_error() -> None:
    turnstile = Turnstile()
    with pytest.raises(ZeroDivisionError), turnstile.turn():
        1 / 0  # noqa: B018
    with turnstile.turn():
        pass


def test_a_stopwatch_adds_up_and_starts_again() -> None:
    watch = Stopwatch()
    for _ in range(2):
        with watch:
            time.sleep(0.01)
    assert 0.02 <= watch.take() < 1
    assert watch.take() == 0.0
