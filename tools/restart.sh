#!/usr/bin/env bash
# Runs a command, and again whenever a host was lost or the machine is to go:
#   bash tools/restart.sh python train.py --config ... --config.hosts.stopped_status=75
# Not after 0 (done), 1 and 2 (an error that starting again does not mend) or 130 (^C),
# nor once this script itself was told to stop. Waits RESTART_S seconds, 30 by default.
set -u
stopped=
child=
tell() { # once: asked twice, train.py does not save
  [ -z "$stopped" ] && [ -n "$child" ] && kill -TERM "$child" 2>/dev/null
  stopped=1
}
trap tell TERM INT
while :; do
  # A group of its own: Slurm and terminals signal this script's, which passes it on.
  setsid "$@" &
  child=$!
  wait "$child"
  status=$?
  # A signal ends `wait`, not the command: it is still saving, or ended just then.
  while kill -0 "$child" 2>/dev/null; do wait "$child"; done
  if [ -n "$stopped" ]; then
    wait "$child"
    status=$?
  fi
  child=
  case $status in 0 | 1 | 2 | 130) exit "$status" ;; esac
  [ -n "$stopped" ] && exit "$status"
  echo "exit status $status: starting again in ${RESTART_S:-30} s" >&2
  sleep "${RESTART_S:-30}" &
  child=$!
  wait "$child"
  child=
  [ -n "$stopped" ] && exit "$status"
done
