#!/usr/bin/env bash
# Runs one command on every host of a TPU slice, one process per host, until it succeeds. A slice that is missing or
# was preempted is created again, and the same command continues from the last checkpoint.
#
#   TPU_TYPE=v5litepod-16 tools/launch/tpu_pod.sh NAME ZONE \
#       python -m ebt_jax.main --config=configs/text_ebt_s1.py:small --workdir=/mnt/shared/runs/small --distributed
#
# The folder of the run must be on a file system that all hosts mount at the same path. Environment:
#   TPU_TYPE        accelerator type, needed to create a slice
#   TPU_IMAGE       runtime image (tpu-ubuntu2204-base)
#   TPU_SPOT        1: a preemptible slice
#   TPU_SETUP       shell command for a new host: mounts, a clone of the repository, pip install -e '.[tpu]'
#   TPU_REPOSITORY  the repository on the hosts (ebt_jax, in the home folder)
#   TPU_RETRIES     failures of the command without a preemption, before giving up (3)
#   TPU_WAIT        seconds between attempts (30)
#   TPU_DRY_RUN     1: only print the commands
# Exit code: the command's. 2 means a mistake in its flags; the command is then not tried again.
set -euo pipefail

if [ $# -lt 3 ]; then
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
fi
name=$1 zone=$2
shift 2

tpu() {
  local words=(gcloud compute tpus tpu-vm "$1" "$name" "--zone=$zone" "${@:2}")
  if [ "${TPU_DRY_RUN:-0}" = 1 ]; then
    printf '%q ' "${words[@]}"
    echo
  else
    "${words[@]}"
  fi
}

state() { gcloud compute tpus tpu-vm describe "$name" "--zone=$zone" '--format=value(state)' 2>/dev/null || echo MISSING; }

make() {
  : "${TPU_TYPE:?set it to the accelerator type of the slice to create, such as v5litepod-16}"
  local spot=()
  if [ "${TPU_SPOT:-0}" = 1 ]; then spot=(--spot); fi
  tpu create "--accelerator-type=$TPU_TYPE" "--version=${TPU_IMAGE:-tpu-ubuntu2204-base}" ${spot[@]+"${spot[@]}"} &&
    { [ -z "${TPU_SETUP:-}" ] || tpu ssh --worker=all "--command=$TPU_SETUP"; }
}

# A broken connection can leave the program running: the lock makes the next attempt wait for its end.
remote="cd ${TPU_REPOSITORY:-ebt_jax} && flock .ebt_jax.lock$(printf ' %q' "$@")"

if [ "${TPU_DRY_RUN:-0}" = 1 ]; then
  if [ -n "${TPU_TYPE:-}" ]; then make; fi
  tpu ssh --worker=all "--command=$remote"
  exit 0
fi

failures=0
while true; do
  case "$(state)" in
    READY)
      code=0
      tpu ssh --worker=all "--command=$remote" || code=$?
      if [ "$code" = 0 ] || [ "$code" = 2 ]; then exit "$code"; fi
      if [ "$(state)" = READY ]; then
        failures=$((failures + 1))
        echo "tpu_pod.sh: exit code $code on a slice that is READY; failure $failures of ${TPU_RETRIES:-3}" >&2
        if [ "$failures" -ge "${TPU_RETRIES:-3}" ]; then exit "$code"; fi
      else
        failures=0
        echo "tpu_pod.sh: $name was preempted (exit code $code)" >&2
      fi
      ;;
    MISSING) make || echo "tpu_pod.sh: $name could not be created; trying again" >&2 ;;
    CREATING | STARTING | RESTARTING | REPAIRING | STOPPING | DELETING) ;; # the state will change soon
    *) tpu delete --quiet || true ;;                                       # preempted, terminated, stopped
  esac
  sleep "${TPU_WAIT:-30}"
done
