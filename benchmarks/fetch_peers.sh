#!/usr/bin/env bash
# Fetch the peers of the speed benchmark into a folder of their own, with an environment of their own.
#   benchmarks/fetch_peers.sh [FOLDER]     default: benchmarks/peers (ignored by git)
# PYTHON names the interpreter. A FOLDER/nanoGPT that exists already is used as it is.
set -euo pipefail

folder=${1:-$(dirname "$0")/peers}
nanogpt=3adf61e154c3fe3fca428ad6bc3818b27a3b8291
python=$(command -v "${PYTHON:-python3}")

mkdir -p "$folder"
cd "$folder"
printf '*\n' >.gitignore
if [ ! -d nanoGPT ]; then
    git clone --quiet https://github.com/karpathy/nanoGPT.git
    git -C nanoGPT checkout --quiet "$nanogpt"
fi
"$python" -m venv --clear venv
venv/bin/python -m pip install --quiet torch==2.13.0 lightning==2.6.6 transformers==5.23.0 accelerate==1.15.0 \
    torchmetrics==1.9.0 numpy==2.4.6 "jsonargparse[signatures]==4.41.0"
# without its dependencies: it asks for an older huggingface-hub than transformers does, and runs with the newer one
venv/bin/python -m pip install --quiet --no-deps litgpt==0.5.13
