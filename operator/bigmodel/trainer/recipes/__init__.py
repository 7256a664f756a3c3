"""Training built in: each recipe turns `spec.recipe` and a data set into a `Task`, which the loop trains and
`publish` exports.

A recipe knows its model, its data and what a good answer is; it knows no ranks, no process groups and no stores.
"""
