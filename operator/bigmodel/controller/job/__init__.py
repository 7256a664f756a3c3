"""BigModelJob: observe.py (facts) → decide.py (pure) → build.py (pure manifests), and a file for each rule it calls.

Only progress.py and reconciler.py may wait for anything; what the others need comes as an argument.
"""
