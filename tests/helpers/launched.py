"""What several processes train."""

import socket

from helpers.tiny_run import load


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def url():
    return f"--dist-url=tcp://127.0.0.1:{free_port()}"


def weights(folder):
    return load(folder / "out" / "model_final.pth")["model"]
