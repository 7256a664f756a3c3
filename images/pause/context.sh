#!/bin/sh
# Fills the build context $1: `pause`, static, so that it runs in an empty file system.
set -eu
gcc -static -Os -s -Wall -Wextra -o "$1/pause" "$(dirname "$0")/pause.c"
