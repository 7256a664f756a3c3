"""What a test program writes down for the test, and reports to its launcher. Standard library only."""

import json
import os
import socket
import time

RANK = int(os.environ["RANK"])
WORLD = int(os.environ["WORLD_SIZE"])
GENERATION = int(os.environ["BIGMODEL_GENERATION"])
_socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


def note(event: str, **values: object) -> None:
    line = json.dumps({"event": event, "rank": RANK, "generation": GENERATION, "at": time.time(), **values}) + "\n"
    file = os.open(os.environ["DIARY"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line.encode())  # one write: lines of several ranks do not mix
    os.close(file)


def report(phase: str, step: int = 0, **values: object) -> None:
    message = {"rank": RANK, "generation": GENERATION, "phase": phase, "step": step, "totalSteps": 1000, **values}
    _socket.sendto(json.dumps(message).encode(), os.environ["BIGMODEL_REPORT"])
