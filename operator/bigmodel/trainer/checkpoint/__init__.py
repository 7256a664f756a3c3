"""Checkpoints: what a training needs to go on, kept in the store so that it can be trusted.

torch.distributed.checkpoint (DCP) plans who writes and reads what, across any change of ranks and sharding; this
package is its storage. Nothing in a checkpoint is a pickle: tensors are raw bytes, everything else is JSON in
`manifest.json`, whose appearance is the commit. Plans are exchanged between living ranks by torch's own collectives.

    state.py        live objects ↔ named tensors and plain values
    manifest.py     what is written down about them
    storage.py      DCP's writer and reader over a store
    catalog.py      which checkpoints are in a store, and which may go
    checkpoints.py  save, load: collective
    cadence.py      when to save: pure

Here is no rule about steps, reports or notices: those are `trainer.saving`'s.
"""
