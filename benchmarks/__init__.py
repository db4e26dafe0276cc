"""Side-by-side timings:  make bench."""

import os

# As in the workflow, before torch is there: its idle threads must not spin on cores that others could use.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
