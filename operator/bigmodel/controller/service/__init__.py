"""BigModelService: observe.py (facts) → decide.py (pure) → build.py (pure manifests), and one file for each rule that
decide calls. Only reconciler.py and verdicts.py may await; nothing here talks to the API server.
"""
