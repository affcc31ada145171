"""Models: loading and saving, and the one place a score is read."""

import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels for CPUs that nobody asked for
