#!/usr/bin/env bash
# After the array: one file, or a refusal that names the shards that are missing.
#
#   sbatch --dependency=afterany:JOBID recipes/slurm_merge.sh plan.parquet s3://bucket/tags tags.jsonl
#
#SBATCH --job-name=vtag-merge
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
set -euo pipefail

plan=$1
parts=$2
out=$3

vtag merge "$parts" --plan "$plan" --out "$out"
