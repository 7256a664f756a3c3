"""BigModel: distributed training jobs and gated model rollouts, declared as two Kubernetes resources.

One room for each process (docs/architecture.md has the map); this package itself holds nothing.
"""
