"""When a signal ends a run, and when it waits."""

import os
import signal

import pytest

from cmt_aqr.runs.stopping import Stopped, StopSignals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_at_once_unless_it_is_held_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as signals:
        with pytest.raises(Stopped) as stopped:
            os.kill(os.getpid(), number)
        assert stopped.value.code == 128 + number
    assert signal.getsignal(number) == before
    with StopSignals() as signals:
        signals.hold()
        os.kill(os.getpid(), number)
        assert signals.received == number
        with pytest.raises(Stopped) as stopped:
            signals.release()
        assert stopped.value.code == 128 + number


def test_a_second_ctrl_c_does_not_wait_but_a_second_sigterm_does(capfd: pytest.CaptureFixture[str]) -> None:
    with StopSignals() as signals:
        signals.hold()
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err.count("stopping after this step") == 1


def test_a_signal_that_somebody_handles_stays_theirs() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            assert heard == [signal.SIGTERM] and signals.received is None
    finally:
        signal.signal(signal.SIGTERM, before)
