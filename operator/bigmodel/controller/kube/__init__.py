"""The only HTTP towards the API server: raw dicts, server-side apply, reflectors, the lease, events.

No rule of ours lives here.
"""
