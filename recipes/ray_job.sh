#!/usr/bin/env bash
# Tags a library on a Ray cluster that is there: the driver runs on the cluster, not here.
#
#   RAY_ADDRESS=http://head:8265 recipes/ray_job.sh s3://bucket/videos s3://bucket/tags [FLAGS…]
#
# Run it again after anything that stopped it: it goes on where it was. Needs `ray[default]` here,
# and on the nodes the same vtag (in their image, or through VTAG_PACKAGE below) and credentials
# for the storage. FLAGS are those of `vtag run`, for example --gpus 4 --decoders 128.
set -euo pipefail

videos=${1:?the videos: a folder, s3://… or gs://…}
tags=${2:?where the tags go: s3://… or gs://…, or a .jsonl file on a disk that the head has}
shift 2

# A pip requirement that each node installs into an environment of the job, for nodes whose image
# has no vtag; empty for an image that has it.
runtime_env='{}'
if [ -n "${VTAG_PACKAGE:-}" ]; then
  runtime_env=$(printf '{"pip": ["%s"]}' "$VTAG_PACKAGE")
fi

# --failed-ok: a bad video has its record, and does not make the job a failed one.
exec ray job submit \
  --address "${RAY_ADDRESS:?the dashboard of the cluster, such as http://head:8265}" \
  --runtime-env-json "$runtime_env" \
  -- \
  vtag run "$videos" --engine ray --out "$tags" --failed-ok "$@"
