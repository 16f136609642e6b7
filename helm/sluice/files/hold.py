"""Keep a worker of a group alive while its leader serves: `hold.py SECONDS PORT`, run before the pod gets SIGTERM.

The leader answers /livez to the end of its drain. Three refusals in a row mean that it has gone; one
may be transient.
"""

import http.client
import os
import sys
import time


def leader_answers(address: str, port: int) -> bool:
    connection = http.client.HTTPConnection(address, port, timeout=5)
    try:
        connection.request("GET", "/livez")
        connection.getresponse()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def main() -> None:
    until = time.monotonic() + float(sys.argv[1])
    refused = 0
    while time.monotonic() < until and refused < 3:
        refused = 0 if leader_answers(os.environ["LWS_LEADER_ADDRESS"], int(sys.argv[2])) else refused + 1
        time.sleep(1)


if __name__ == "__main__":
    main()
