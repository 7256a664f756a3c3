"""The real Kubernetes cluster on this machine that the demo and the tests run on, built from package registries alone.

`python -m tests.cluster up` starts it: etcd, API server, controller-manager, scheduler and CoreDNS as plain processes,
and two nodes, each in its own network and mount namespace with its own containerd, kubelet and kube-proxy. There is
**one cluster per machine** (kube-proxy owns one nftables table per network namespace); every checkout uses the same
one, and nothing of it lies in a checkout.

Here live: building and starting that cluster and its images. Not here: anything that knows the operator, its chart or
its resources. Standard library and `cryptography` only, for the Makefile calls this before anything else is installed.
"""
