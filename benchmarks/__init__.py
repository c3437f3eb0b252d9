"""The benchmarks that `make bench-...` runs."""

import os

os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported: hides libraries' bars between our lines
