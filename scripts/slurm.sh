#!/usr/bin/env bash
# Submits superpixels, CAMs and pseudo-masks as Slurm arrays: scripts/slurm.sh SHARDS WORK DATASET...
#
#     scripts/slurm.sh 64 runs/photos folder --root /data/photos
#
# Task i of a stage waits for task i of the one before, and for no other. A task that is preempted gets two minutes to finish
# what is under way, is queued again and goes on. WORK lies on a file system that all nodes see.
set -euo pipefail
shards=$1 work=$2
shift 2

submit() { # name, resources, dependency, command
    # shellcheck disable=SC2086 # resources are several words
    sbatch --parsable --job-name="ssr-$1" --output="ssr-$1-%a.log" --open-mode=append --requeue --signal=B:TERM@120 \
        $2 ${3:+--dependency="$3"} --wrap "exec ssr $4 --work $work"
}

array="--array=0-$((shards - 1))"
superpixels=$(submit superpixels "$array --cpus-per-task=8 --mem=8G" "" "superpixels $*")
cams=$(submit cams "$array --gpus=1 --cpus-per-task=8 --mem=16G" "aftercorr:$superpixels" "cams")
refine=$(submit refine "$array --gpus=1 --cpus-per-task=8 --mem=16G" "aftercorr:$cams" "refine --boundary auto")
submit merge "--cpus-per-task=1 --mem=4G" "afterok:$refine" "merge"
