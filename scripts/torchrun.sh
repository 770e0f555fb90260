#!/usr/bin/env bash
# Train on all GPUs of this machine, or in PROCESSES processes; a run that is there already goes on.
#   scripts/torchrun.sh configs/synthesis_3d_mr.yaml runs/mr3d --set train.batch=8
# More machines: call it on each with TORCHRUN="--nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:29500".
set -euo pipefail
config=$1 run=$2
shift 2
processes=${PROCESSES:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}
resume=()
[ -f "$run/config.yaml" ] && resume=(--resume)
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-120} # seconds for the last checkpoint after SIGTERM
# shellcheck disable=SC2086
exec torchrun ${TORCHRUN:---standalone} --nproc-per-node "$processes" -m meddiff train "$config" -o "$run" "${resume[@]}" "$@"
