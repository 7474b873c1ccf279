#!/usr/bin/env bash
# A Slurm array: every task tags one shard of a plan, and one more job merges them.
#
#   vtag plan s3://bucket/videos/ --out plan.parquet --probe --shards 256
#   sbatch --array=1-256%64 recipes/slurm_array.sh plan.parquet s3://bucket/tags
#
# 256 shards for 64 nodes at a time: a task that ends early makes room for the next, so a slow
# node or a long video holds up a 256th of the work. A task that was killed or requeued goes on
# after its last record; to start the missing ones again, submit the same array again.
#
#SBATCH --job-name=vtag
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@60
set -euo pipefail

plan=$1
out=$2
shard="${SLURM_ARRAY_TASK_ID:?start this with sbatch --array}/${SLURM_ARRAY_TASK_COUNT:?}"

# The node's own disk, which Slurm empties after the task.
export VTAG_SPOOL_DIR="${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/vtag-spool"
export OMP_NUM_THREADS=1

# 1 means that some videos failed: each has its record, and the shard came to its end. (4: more
# failed than --max-failures allows, and it did not.)
status=0
srun vtag run --manifest "$plan" --shard "$shard" --out "$out" --workers "${SLURM_CPUS_PER_TASK:-1}" --spool-size 20G --max-failures 20% || status=$?
[ "$status" -le 1 ] || exit "$status"
