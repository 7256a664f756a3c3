"""Inside the serving pod: what puts a verified artefact in front of Triton, and what proves that Triton answers as the
trainer did.

Here live `fetch` (init container), `config` (Triton's config.pbtxt, pure), `backend/model.py` (runs inside Triton) and
`verify` (sidecar). Not here: torch (only backend/model.py imports it, inside Triton's own Python), Kubernetes, anything
the controller imports.
"""
