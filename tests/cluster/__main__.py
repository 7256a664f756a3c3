"""`python -m tests.cluster VERB`: the local cluster from a shell and from the Makefile."""

from __future__ import annotations

import argparse
import signal
from contextlib import suppress

from tests.cluster import build, cluster, images
from tests.cluster.api_server import api_server


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster", description="The local Kubernetes cluster: one per machine."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("prepare", help="install Debian packages and compile Kubernetes, where missing")
    verbs.add_parser("up", help="start the cluster, or repair it")
    verbs.add_parser("down", help="stop the cluster; images stay")
    built = verbs.add_parser("images", help="build images and copy them to the nodes; prints name and reference")
    built.add_argument("names", nargs="*", metavar="NAME", help="folders of images/ (all that a chart needs, if none)")
    verbs.add_parser("env", help="print export lines for a shell")
    verbs.add_parser("api-server", help="run only etcd and the API server, until interrupted; prints the kubeconfig")
    verbs.add_parser("status", help="print what runs")
    arguments = parser.parse_args()
    match arguments.verb:
        case "prepare":
            build.prepare()
        case "up":
            cluster.up()
        case "down":
            cluster.down()
        case "images":
            for name, reference in images.load(arguments.names or images.for_the_chart()).items():
                print(name, reference)
        case "env":
            print(cluster.environment(), end="")
        case "api-server":
            with api_server() as kubeconfig, suppress(KeyboardInterrupt):
                print(kubeconfig, flush=True)
                signal.pause()
        case "status":
            print(cluster.status())


if __name__ == "__main__":
    main()
