"""PID 1 of a training pod: starts the ranks of its index, watches them, reports, heals the gang with its peers.

Deciding is pure: `coordinator`, `member`, `hang`, `culprit`, `budget`, `board` and `last_word` take events and the time
and give back commands. Doing is dumb: `connections`, `processes`, `reports`, `web`, `node` carry them out, on one loop.
Nothing here imports torch, the trainer, or anything of Kubernetes: the same process trains on a laptop.
"""
