#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# What the checks need of the system beside Python 3.11: curl for the README's lines, venv for the first
# environment, a C compiler for the driver that tests ask. Installed only where it is missing.
set -euo pipefail

missing=()
command -v curl >/dev/null || missing+=(curl)
command -v cc >/dev/null || missing+=(gcc libc6-dev)
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)

if ((${#missing[@]})); then
    as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo -n)
    export DEBIAN_FRONTEND=noninteractive
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi
