#!/usr/bin/env bash
# GNU parallel, on this machine or on those of a list: shards into files, then one file.
#
#   recipes/gnu_parallel.sh ./videos tags.jsonl            # here, a shard per two cores
#   HOSTS=hosts.txt recipes/gnu_parallel.sh /mnt/videos /mnt/tags/tags.jsonl
#
# With HOSTS (one "cores/host" a line, ssh without a password) the videos and the output lie on
# a disk that all of them mount. The job log makes a second call start only what did not end;
# a shard that was cut off goes on after its last record.
set -euo pipefail

videos=$1
out=$2
shards=${SHARDS:-$((4 * $(nproc)))}
work="$(dirname "$out")/.$(basename "$out").shards"
mkdir -p "$work"

where=(--jobs "${JOBS:-50%}")
[ -z "${HOSTS:-}" ] || where=(--sshloginfile "$HOSTS" --workdir "$PWD")

# vtag's status 1 (some videos failed) is an end like any other; parallel would count it as its own.
parallel "${where[@]}" --joblog "$work/jobs.log" --resume-failed --retries 2 --line-buffer \
  "vtag run $(printf %q "$videos") --shard {}/$shards --out $(printf %q "$work")/{}.jsonl --workers 2 --quiet; [ \$? -le 1 ]" \
  ::: $(seq "$shards")

vtag merge "$work"/*.jsonl --out "$out"
