"""A request to stop: raised at once, or once the step is whole, and what is saved then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from verl.trainer.stop_requests import (
    ClusterLostError,
    StopRequests,
    Terminated,
    saving_when_stopped,
)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def wait_for_signal():
    """A handler runs between two bytecodes of the main thread."""
    assert not threading.Event().wait(10), "nobody sets it"
    pytest.fail("no signal came")


def test_sigterm_is_raised_at_once_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), StopRequests():
        terminate()
        wait_for_signal()
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_stays_what_it_is():
    with pytest.raises(KeyboardInterrupt), StopRequests():
        signal.raise_signal(signal.SIGINT)


def test_what_another_thread_finds_is_raised_in_the_main_one():
    with pytest.raises(ValueError, match="the cluster died") as caught, StopRequests() as stop:
        threading.Thread(target=stop.stop, args=(ValueError("the cluster died"),)).start()
        wait_for_signal()
    assert not stop.allows_saving and caught.value is not None


def test_a_cluster_that_ends_by_the_same_sigterm_is_no_other_reason():
    """Schedulers send it to every process of a job."""
    with pytest.raises(Terminated), StopRequests() as stop, stop.postponed():
        terminate()
        threading.Thread(target=stop.stop, args=(ClusterLostError("Ray's raylet died"),)).start()
        wait_for_signal()
    assert not stop.allows_saving


def test_a_cluster_that_ends_while_the_last_step_is_saved_breaks_that_off():
    with pytest.raises(Terminated), StopRequests() as stop:
        try:
            terminate()
            wait_for_signal()
        finally:
            assert stop.allows_saving
            stop.stop(ClusterLostError("Ray's raylet died"))
            wait_for_signal()
    assert not stop.allows_saving


def test_a_step_that_has_begun_is_finished_first():
    done = []
    with pytest.raises(Terminated), StopRequests() as stop:
        with stop.postponed():
            terminate()
            done.append("step")
        done.append("next step")
    assert done == ["step"] and stop.allows_saving


def test_a_step_that_takes_too_long_is_broken_off():
    with pytest.raises(Terminated), StopRequests(grace_s=0.05) as stop, stop.postponed():
        terminate()
        wait_for_signal()
    assert not stop.allows_saving


def test_an_error_of_a_worker_that_was_told_to_stop_as_well_is_the_same_request():
    with pytest.raises(Terminated), StopRequests() as stop, stop.postponed():
        terminate()
        raise RuntimeError("the worker is gone")
    assert not stop.allows_saving


def test_a_second_signal_ends_the_process_there_and_then():
    code = (
        "import signal\n"
        "from verl.trainer.stop_requests import StopRequests\n"
        "with StopRequests():\n"
        "    try:\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    finally:\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "        print('closing')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "stopped at once by a second signal; finished checkpoints are kept\n"


class Trainer(SimpleNamespace):
    def save(self):
        self.saves.append(self.step)


@pytest.mark.parametrize(
    ("step", "saved", "number", "saves"),
    [
        (3, 2, signal.SIGTERM, [3]),
        (3, 3, signal.SIGTERM, []),  # it is there already
        (0, None, signal.SIGTERM, []),  # nothing is trained yet
        (3, 2, signal.SIGINT, []),
    ],
)
def test_sigterm_keeps_the_steps_that_are_finished(step, saved, number, saves):
    with pytest.raises((Terminated, KeyboardInterrupt)) as caught, StopRequests() as stop:
        trainer = Trainer(stop=stop, step=step, saved=saved, total_steps=5, saves=[])
        with saving_when_stopped(trainer):
            signal.raise_signal(number)
    assert trainer.saves == saves
    assert caught.value.__notes__ == [f"it was in step {step + 1} of 5"]
