"""When a signal stops a run, and when it is deferred."""

import os
import signal

import pytest

from cmt_aqr.runs.stopping import Stopped, StopSignals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_immediately_unless_it_is_deferred(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals():
        with pytest.raises(Stopped) as stopped:
            os.kill(os.getpid(), number)
        assert stopped.value.code == 128 + number
    with StopSignals() as signals:
        signals.hold()
        os.kill(os.getpid(), number)
        with pytest.raises(Stopped):
            signals.release()
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_is_not_deferred_but_a_second_sigterm_is(capfd: pytest.CaptureFixture[str]) -> None:
    with StopSignals() as signals:
        signals.hold()
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err.count("stopping after this step") == 1


def test_another_handler_stays_in_charge() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            assert received == [signal.SIGTERM] and signals.received is None
    finally:
        signal.signal(signal.SIGTERM, before)
