"""The two resources and the wire contracts, as frozen pydantic models; names, labels, conditions, reasons; CRD generation.

May live here: what more than one process must agree on, and nothing that acts. No IO, no clock, no torch, no Kubernetes client.
"""
