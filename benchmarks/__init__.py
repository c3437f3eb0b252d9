"""What `make bench-...` runs."""

import os

os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported: bars of libraries between our lines
