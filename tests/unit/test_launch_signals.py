"""Signals as requests to stop: none is lost, and a second one changes nothing."""

import os
import signal
import subprocess
import sys

import pytest

from xelm_nemo.launch import signals

STARTED_WHILE_BLOCKED = """
import time
from xelm_nemo.launch import signals
print("up", flush=True)
time.sleep(0.5)
with signals.caught(["USR2"]) as stop:
    print(stop.signal, flush=True)
"""


@pytest.fixture(autouse=True)
def handlers_of_before():
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signal_asks_to_stop_and_a_second_one_changes_nothing():
    with signals.caught(["USR1", "USR2"]) as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop and stop.signal == "SIGUSR2"
        assert signal.getsignal(signal.SIGUSR2) is not signal.SIG_DFL
    os.kill(os.getpid(), signal.SIGUSR2)  # nor does one that comes when all is saved


def test_handler_of_before_is_back_afterwards():
    before = signal.getsignal(signal.SIGUSR2)
    with signals.caught(["USR2"]):
        pass
    assert signal.getsignal(signal.SIGUSR2) is before


def test_signal_before_a_process_can_take_it_waits_for_it():
    with signals.blocked(["USR2"]):
        process = subprocess.Popen(
            [sys.executable, "-c", STARTED_WHILE_BLOCKED], stdout=subprocess.PIPE, text=True
        )
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGUSR2)
    assert process.stdout.readline() == "SIGUSR2\n"
    assert process.wait() == 0
