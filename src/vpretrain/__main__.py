"""`python -m vpretrain` is the `vpretrain` command."""

from vpretrain.cli import main

raise SystemExit(main())
