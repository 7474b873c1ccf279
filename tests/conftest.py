"""What holds for all tests."""

from __future__ import annotations

import signal

from hypothesis import settings

# How long an example takes says how busy the machine is, and nothing of vtag.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# `nohup` and a script's `&` start processes that do not hear these, and neither would the ones
# that the tests start and interrupt.
for _number, _usual in (
    (signal.SIGINT, signal.default_int_handler),
    (getattr(signal, "SIGHUP", None), signal.SIG_DFL),
):
    if _number is not None and signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _usual)
