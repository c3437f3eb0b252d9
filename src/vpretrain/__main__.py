"""`python -m vpretrain` is the `vpretrain` command."""

from vpretrain.cli.parser import main

raise SystemExit(main())
