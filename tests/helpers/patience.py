"""How tests wait: for what is to happen, however long a busy machine takes for it."""

import time

PATIENCE = 600  # seconds; ends a test that hangs, and no other


def wait_for(true):
    """Looks every millisecond; False if it is not true in the end."""
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True
