#!/bin/bash
# Train one model on all chips of a Cloud TPU pod slice, with a process on each of its machines:
#
#     TPU=NAME ZONE=ZONE [FOLDER=jrobust] launch/tpu_pod.sh --config=FILE --workdir=SHARED
#
# Needs gcloud here, and on every machine of the slice this repository in ~/FOLDER, installed with the extra tpu. SHARED
# is a folder that every machine sees at one path (Filestore, or a bucket mounted by gcsfuse). To stop with a checkpoint,
# send SIGTERM to launch/run.py on any of the machines; the same command goes on from there.

set -eu
# Quoted once more: ssh hands the words to a shell.
arguments=$(printf '%q ' "$@")
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --command="cd ${FOLDER:-jrobust} && python launch/run.py --distributed $arguments"
