"""`make up` and `make demo`: install the chart on the local cluster, train and serve the quickstart, ask it."""
