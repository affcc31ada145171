"""So that `python -m rlhf ...` and `accelerate launch -m rlhf ...` work."""

import sys

from rlhf.cli import main

sys.exit(main())
