#!/usr/bin/env bash
# What a GPU says of this repository, in ten minutes at most: tests, kernels, training steps, the paper's Table 2, thirty
# real steps with a resume, and memory as it was planned. Needs torch, transformers and pyarrow; downloads nothing.
#
#   bench/gpu_check.sh [--dry-run] [--only PART ...] [--out FILE]
#
# --dry-run: the same parts at a tiny size on the CPU, to try the script itself. PYTHON=… chooses an interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
exec "$python" -m bench.gpu_check "$@"
