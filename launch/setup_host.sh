#!/usr/bin/env bash
# Installs the code on one host: its own Python (images of TPU VMs carry one that is too old), its own environment.
# Usage: setup_host.sh ARCHIVE.tar.gz EXTRAS
set -euo pipefail
archive=$(realpath "$1")
extras=$2
python3 -m pip install --quiet --user uv
uv=$(python3 -c 'import site; print(site.getuserbase())')/bin/uv
[ -x "$HOME/dlm/bin/python" ] || "$uv" venv --quiet --python 3.12 "$HOME/dlm"
"$uv" pip install --quiet --python "$HOME/dlm/bin/python" --reinstall-package dlm_jax "dlm_jax[$extras] @ file://$archive"
"$HOME/dlm/bin/dlm" --version
