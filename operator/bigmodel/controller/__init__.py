"""The controller: watches both resources and makes the cluster match them.

observe (facts) → decide (pure) → execute. Here live the loop and the rules; only `kube` talks to the API server; no
torch, no store, no Secret is ever read.
"""
