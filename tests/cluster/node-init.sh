#!/bin/sh
# Process 1 of a node: it lives in the node's new network, mount, process and host name namespaces and holds them open. When it is killed the
# kernel kills every process of the node, and with the last one go its mounts and its network link: a node leaves nothing behind.
# Usage: node-init.sh NAME FOLDER. Prints its process id as the machine sees it, once the node is furnished, and waits for a line that says it
# was recorded: a node that nobody could find again must not live on.
set -eu
read -r pid _ < /proc/self/stat # /proc is still the machine's here
mount -t proc proc /proc
mount --make-rshared / # inside this namespace only; the runtime shares mounts with containers that ask for it
mount -t tmpfs -o mode=755 tmpfs /run
mount --bind "$2/log" /var/log # the kubelet links container logs below /var/log/containers, whatever its configuration
mount --bind "$2/cni" /var/lib/cni
hostname "$1"
ip link set lo up
echo "$pid"
read -r _recorded
exec > /dev/null 2>&1 < /dev/null
# Orphans (container shims) become children of process 1: the shell's wait buries them.
while :; do
    sleep 3600 &
    wait
done
