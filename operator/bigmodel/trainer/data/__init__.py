"""Where training samples come from, and which rank takes which of them when.

Here lives reading of data sets and their order. Nothing here unpickles, nothing knows models or process groups: rank
and world size are arguments.
"""
