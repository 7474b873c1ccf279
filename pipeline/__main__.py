"""`python -m vtag` is the same as `vtag`."""

import sys

from vtag.cli import main

sys.exit(main())
