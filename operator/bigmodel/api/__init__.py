"""The two resources and the wire contracts, as frozen pydantic models; names, conditions; CRD generation.

May live here: what more than one process must agree on, and nothing that acts. No IO (but `crd`, which writes files),
no clock, no torch, no Kubernetes client.
"""
