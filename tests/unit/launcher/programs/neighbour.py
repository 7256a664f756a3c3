"""Beside the scripts: importable as it is when `python script.py` runs."""

HERE = __file__
