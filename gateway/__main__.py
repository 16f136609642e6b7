"""`python -m gateway` is `sluice`. Kept tiny: processes that vLLM spawns import this file again."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from gateway.cli import main

    sys.exit(main())
