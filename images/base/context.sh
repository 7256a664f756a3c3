#!/bin/sh
# Fills the build context $1: `rootfs.tar`, a minimal Debian bookworm with Python, from the mirror that this machine's apt uses.
set -eu
mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' 2> /dev/null |
    awk '$2 == "bookworm" { print $1; exit }')
# debootstrap unpacks below its target with chroot: no services, no caches left in the image.
debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,libgomp1 bookworm "$1/rootfs" ${mirror:+"$mirror"}
chroot "$1/rootfs" apt-get install -y -qq --no-install-recommends python3-pip # the include list would bring a compiler along
rm -rf "$1"/rootfs/var/cache/apt/*.deb "$1"/rootfs/var/cache/apt/archives/*.deb "$1"/rootfs/var/lib/apt/lists/* "$1"/rootfs/var/log/*.log
tar --create --file="$1/rootfs.tar" --directory="$1/rootfs" --numeric-owner --one-file-system --exclude=./dev/* --exclude=./proc/* --exclude=./sys/* .
rm -rf "$1/rootfs"
