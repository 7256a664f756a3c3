"""Python imports this at its start where this directory is on PYTHONPATH: lets steps.py stand in for the trainer.

STAND_IN_FOR_TRAINER: `good`; `missing`, it cannot be imported; `threaded`, whoever preloads it has a thread too many;
`slow`, who preloads it takes 3 s.
"""

import os
import runpy
import sys
import threading
import time
import types

kind = os.environ.get("STAND_IN_FOR_TRAINER")
if kind is not None:
    stand_in = types.ModuleType("bigmodel.trainer.main")
    stand_in.main = lambda: runpy.run_path(os.path.join(os.path.dirname(__file__), "steps.py"))
    sys.modules["bigmodel.trainer.main"] = None if kind == "missing" else stand_in
    if kind == "slow" and "serve" in sys.orig_argv:
        time.sleep(3)
    if kind == "threaded" and "serve" in sys.orig_argv:
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
