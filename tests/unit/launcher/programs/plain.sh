#!/bin/sh -e
# A program that is no Python, as a key of a ConfigMap: not executable.
echo "shell rank $RANK of $WORLD_SIZE: $1"
yes | head -n 1 >/dev/null
exit "${CODE:-0}"
