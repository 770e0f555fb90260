#!/usr/bin/env bash
#SBATCH --job-name=meddiff
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180
# Train under SLURM, in as many jobs as it takes: three minutes before the time is up the run saves a checkpoint, the job goes
# back into the queue, and the next one goes on. A job that SLURM itself preempts is stopped in the same way, and SLURM
# requeues it. Submit from the root of this repository:
#   sbatch scripts/slurm.sh configs/synthesis_3d_mr.yaml runs/mr3d
#   sbatch --nodes=2 scripts/slurm.sh configs/synthesis_3d_mr.yaml runs/mr3d
# The run folder, the data and the cache ($MEDDIFF_CACHE) must lie where every node sees them.
set -uo pipefail
here=$(cd "${SLURM_SUBMIT_DIR:-.}" && pwd)
nodes=${SLURM_JOB_NUM_NODES:-1}
if [ "$nodes" -gt 1 ]; then
    host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    export TORCHRUN="--nnodes $nodes --rdzv-id $SLURM_JOB_ID --rdzv-backend c10d --rdzv-endpoint $host:$((20000 + SLURM_JOB_ID % 20000))"
fi

requeue=no
stop() { # torchrun passes SIGTERM on; every process then saves at the end of its step
    kill -TERM "$child" 2>/dev/null
}
trap 'requeue=yes; stop' USR1
trap stop TERM

srun --kill-on-bad-exit=1 bash "$here/scripts/torchrun.sh" "$@" &
child=$!
wait "$child"
code=$?
while kill -0 "$child" 2>/dev/null; do # a signal ends the first wait before the child
    wait "$child"
    code=$?
done
if [ "$requeue" = yes ] && [ "$code" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
