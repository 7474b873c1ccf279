"""Exit statuses of the command line."""

from __future__ import annotations

from typing import Final

OK: Final = 0  # every input has a result
SOME_FAILED: Final = 1
USAGE: Final = 2  # a wrong command
ENVIRONMENT: Final = 3  # the machine lacks something
STOPPED: Final = 4  # more inputs failed than --max-failures or --fail-fast allow
INTERRUPTED: Final = 130  # 128 + SIGINT
QUIET_PIPE: Final = 141  # 128 + SIGPIPE: what a program gets that writes into a closed pipe
