"""Wait until a server is ready to serve: `wait_ready.py URL SECONDS`. Only the standard library."""

import sys
import time
import urllib.request


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5):  # noqa: S310
            return True
    except OSError:
        return False


def main() -> None:
    until = time.monotonic() + float(sys.argv[2])
    while not is_ready(sys.argv[1]):
        if time.monotonic() > until:
            sys.exit(f"{sys.argv[1]} was not ready within {sys.argv[2]} s")
        time.sleep(1)


if __name__ == "__main__":
    main()
