"""STEPS steps of PAUSE seconds, without torch or a collective. The next generation goes on from the last one made.

BEHAVIOUR is what goes wrong: comma-separated `rank:generation:step:act`; `*` matches any, step 0 is before the first.
Acts: exit=N, _exit=N, raise=TEXT, segfault, hang, stall (without a word).
ON_SIGTERM: save | ignore | notice (obey the file). GRANDCHILD: leave a process behind. ARTIFACT: report one.
SAY: write six lines of it, on both streams. FLOOD_MIB: write that much.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, os.path.dirname(__file__))
from diary import GENERATION, RANK, note, report

STEPS = int(os.environ.get("STEPS", "20"))
PAUSE = float(os.environ.get("PAUSE", "0.01"))
CHECKPOINT = f"{os.environ['DIARY']}.step{RANK}"


def misbehave(step: int) -> None:
    for item in filter(None, os.environ.get("BEHAVIOUR", "").split(",")):
        rank, generation, at, act = item.split(":", 3)
        if rank not in ("*", str(RANK)) or generation not in ("*", str(GENERATION)) or at not in ("*", str(step)):
            continue
        name, _, value = act.partition("=")
        match name:
            case "exit":
                sys.exit(int(value))
            case "_exit":
                os._exit(int(value))
            case "raise":
                raise ValueError(value)
            case "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "hang" | "stall":
                if name == "hang":
                    report("Training", step, inCollective=False)
                time.sleep(3600)


def notice() -> None:
    """What the launcher asks of us, once for each request."""
    global noticed
    path = Path(os.environ["BIGMODEL_NOTICE"])
    if path.exists() and (request := json.loads(path.read_text()))["request"] > noticed:
        noticed = request["request"]
        note("notice", notice=request)
        if request["leave"] and os.environ.get("ON_SIGTERM") == "notice":
            leave_at(step - 1)


def leave_at(step: int) -> None:
    """Rank 0 saves for all; real ranks agree on the step in a collective."""
    note("saved", step=step)
    if RANK == 0:
        digest = "sha256:" + "1" * 64
        report(
            "Checkpointing",
            step,
            checkpoint={"step": step, "uri": "file:///c", "digest": digest, "savedAt": time.time()},
        )
    sys.exit(143)


def save_and_leave(*_: object) -> None:
    time.sleep(0.3)
    note("saved")
    sys.exit(143)


noticed = 0
note("start", pid=os.getpid(), env={k: v for k, v in os.environ.items() if k.isupper()}, argv=sys.argv)
report("Starting")
match os.environ.get("ON_SIGTERM"):
    case "save":
        signal.signal(signal.SIGTERM, save_and_leave)
    case "ignore" | "notice":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "GRANDCHILD" in os.environ:
    child = os.fork()
    if child == 0:
        signal.pause()
    note("grandchild", pid=child)
for number in range(6 if "SAY" in os.environ else 0):
    print(f"{os.environ['SAY']} {number}", file=[sys.stdout, sys.stderr][number % 2])
if "FLOOD_MIB" in os.environ:
    began = time.monotonic()
    for _ in range(int(os.environ["FLOOD_MIB"])):
        sys.stdout.write("x" * 99 + "\n" + "y" * ((1 << 20) - 101) + "\n")
    launcher = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[1]
    memory = Path(f"/proc/{launcher}/status").read_text().partition("VmHWM:")[2].split()[0]
    note("flood", launcher_mib=int(memory) / 1024, seconds=time.monotonic() - began)
misbehave(0)
begin = int(Path(CHECKPOINT).read_text()) if os.path.exists(CHECKPOINT) else 0
for step in range(begin + 1, STEPS + 1):
    time.sleep(PAUSE)
    notice()
    misbehave(step)
    report("Training", step, inCollective=True, metrics=[{"name": "loss", "value": f"{1 / step:.4f}"}])
    note("step", step=step)
    with open(CHECKPOINT + ".part", "w") as file:
        file.write(str(step))
    os.rename(CHECKPOINT + ".part", CHECKPOINT)
if "ARTIFACT" in os.environ and RANK == 0:
    artifact = {"uri": "file:///a", "digest": "sha256:" + "0" * 64, "sizeBytes": 1, "variant": "default"}
    report("Done", STEPS, artifact=artifact)
note("end")
