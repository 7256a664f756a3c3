"""Inside a training process: one rank, from its environment to the published model.

Here lives everything that needs torch: mesh, loop, data, recipes, export. It stands on `api` and `artifact` and knows
nothing of Kubernetes. Modules do no work when they are imported and start no thread: the fork server imports them
once and forks every rank from there.
"""
