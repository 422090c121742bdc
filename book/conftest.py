"""With --nbval chapters are executed where their committed outputs were made: on the CPU, whatever there is."""

import os

os.environ.setdefault("SE_DEVICE", "cpu")
