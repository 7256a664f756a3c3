"""The artefact contract: what a trainer leaves in a store and a server takes out of it, verified byte by byte.

Here lives whatever both sides must agree on: paths, manifest and digest, golden samples, stores, publish and fetch.
Nothing that needs torch or Triton. `layout` and `manifest` are pure (the controller imports them); `stores`,
`golden`, `publish` and `fetch` need numpy, safetensors and obstore.
"""
