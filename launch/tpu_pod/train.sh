#!/usr/bin/env bash
# Trains on all hosts of a TPU slice, from a machine that has gcloud:
#
#   launch/tpu_pod/train.sh --name=faces --zone=us-west4-a \
#     --type=v5litepod-64 --version=v2-alpha-tpuv5-lite --spot \
#     --setup='mountpoint -q /mnt || sudo mount 10.0.0.2:/share /mnt' -- \
#     --config=configs/faces.py:30 --workdir=/mnt/runs/faces
#
#   --name=NAME --zone=ZONE   the slice; --project=PROJECT when not gcloud's own
#   --type=TYPE               creates the slice where it is missing, and again
#                             when it was preempted; --version=IMAGE, --spot
#   --setup=COMMAND           run on every host before every start; mounts the
#                             folder that they share, where the workdir must be
#   --restarts=N              default 20; --dry-run prints the commands only
#
# What is committed here is copied to every host (~/jaxseg) and installed there
# with its own Python 3.12. All hosts run the same command; JAX finds the others
# by itself. After a preemption, exit 75 or 7, all start again. The end is that
# of the first host that ended badly.
set -uo pipefail

name='' zone='' project='' type='' version='' setup='' spot='' dry=''
restarts=20

refuse() {
  echo "launch: $*" >&2
  exit 2
}

while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --setup=*) setup=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --spot) spot=1 ;;
    --dry-run) dry=1 ;;
    --) shift && break ;;
    *) refuse "unknown argument $1; see the head of launch/tpu_pod/train.sh." ;;
  esac
  shift
done

[ -n "$name" ] || refuse '--name= of the TPU is missing.'
[ -n "$zone" ] || refuse '--zone= is missing, e.g. --zone=us-west4-a.'
[ -z "$type" ] || [ -n "$version" ] ||
  refuse "--type=$type needs --version=, e.g. v2-alpha-tpuv5-lite for v5e" \
    '(gcloud compute tpus versions list).'
[ -n "$type" ] || [ -z "$spot$version" ] ||
  refuse '--spot and --version are for creating a slice: give its --type= too.'
[[ $restarts =~ ^[0-9]+$ ]] ||
  refuse "--restarts=$restarts, expected 0 or more."
workdir=''
config=''
for argument; do
  case $argument in
    --workdir=*) workdir=${argument#*=} ;;
    --config=*) config=${argument#*=} ;;
  esac
done
[ -n "$config" ] || refuse '--config= is missing after --.'
[[ $workdir == /* ]] ||
  refuse "--workdir=$workdir, expected a full path in a folder that all hosts" \
    'share (see --setup).'

# The process itself, neither the shell that started it nor pkill.
training='^[^ ]*python -m jaxseg.train'
where=(--zone="$zone")
[ -z "$project" ] || where+=(--project="$project")

# Runs a command, or prints it.
run() {
  if [ -n "$dry" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# On one worker or on all, a command line for their shell.
on() {
  local worker=$1 line=$2
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" \
    --worker="$worker" --command="$line"
}

state() {
  gcloud compute tpus tpu-vm describe "$name" "${where[@]}" \
    --format='value(state)' 2>/dev/null
}

create() {
  local options=(--accelerator-type="$type" --version="$version")
  [ -z "$spot" ] || options+=(--spot)
  run gcloud compute tpus tpu-vm create "$name" "${where[@]}" "${options[@]}"
}

# A slice that is ready; one that was preempted is replaced.
ensure() {
  local found=''
  [ -n "$dry" ] || found=$(state)
  [ "$found" != READY ] || return 0
  if [ -z "$type" ]; then
    [ -z "$dry" ] || return 0
    refuse "the TPU $name in $zone is ${found:-missing}, expected READY;" \
      'create it, or give its --type= and --version=.'
  fi
  installed=''
  [ -z "$found" ] ||
    run gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet
  create
}

# The committed files and their requirements, on every host.
install() {
  local archive=$folder/jaxseg.tar.gz root
  root=$(cd "$(dirname "$0")/../.." && pwd)
  run git -C "$root" archive --format=tar.gz -o "$archive" HEAD &&
    run gcloud compute tpus tpu-vm scp "$archive" "$name": "${where[@]}" \
      --worker=all &&
    on all "mkdir -p jaxseg && tar xzf jaxseg.tar.gz -C jaxseg && cd jaxseg &&
      python3 -m pip install -q --user uv &&
      python3 -m uv venv -q --allow-existing --python=3.12 .venv &&
      python3 -m uv pip install -q --python=.venv -r requirements.txt 'jax[tpu]'" &&
    installed=1
}

# The mounts, and whether the workdir is one folder for all.
prepare() {
  local mark
  mark=$(printf '%q' "$workdir/.shared")
  # A host that hangs since the last start would hold its chips.
  on all "pkill -KILL -f '$training'; ${setup:-true}" &&
    on 0 "mkdir -p $(printf '%q' "$workdir") && touch $mark" || return
  on all "test -e $mark"
  case $? in
    0) on 0 "rm -f $mark" ;;
    1) refuse "--workdir=$workdir is not the same folder on all hosts; mount" \
      'a shared one with --setup=.' ;;
    *) return 7 ;; # a host that cannot be reached
  esac
}

# Trains once; sets `code`. gcloud tells the code of the first host by number,
# so every host says its own when it ends.
attempt() {
  local line
  line="cd jaxseg && $(printf '%q ' .venv/bin/python -m jaxseg.train \
    --distributed "$@"); echo jaxseg-exit \$?"
  if [ -n "$dry" ]; then
    on all "$line"
    code=0
    return
  fi
  local ssh tee out status ends
  exec {out}> >(tee "$folder/log")
  tee=$!
  # In the background, so that a signal is handled while it runs.
  on all "$line" >&"$out" 2>&1 &
  ssh=$!
  exec {out}>&-
  while kill -0 $ssh 2>/dev/null; do wait $ssh; done
  wait $ssh
  status=$?
  wait $tee
  ends=$(sed -n 's/.*jaxseg-exit \([0-9]*\).*/\1/p' "$folder/log")
  code=$(grep -vxm1 -e 0 -e 75 <<<"$ends") ||
    code=$(grep -xm1 75 <<<"$ends") || code=0
  # A host that said nothing is gone.
  ((code || status == 0)) || code=7
}

# Ctrl-C here lets the training save.
# shellcheck disable=SC2329 # the trap calls it
stop() {
  stopping=1
  on all "pkill -TERM -f '$training'"
}

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
stopping='' installed='' code=0
trap stop INT TERM
for ((n = 0; ; n++)); do
  code=7
  if ensure && { [ -n "$installed" ] || install; } && prepare &&
    [ -z "$stopping" ]; then
    attempt "$@"
  fi
  if [ -n "$stopping" ] || ((n >= restarts)); then break; fi
  case $code in
    7 | 75 | 1[2-9][0-9] | 2[0-9][0-9]) ;;
    *) break ;;
  esac
  echo "launch: ended with code $code, all start again" >&2
  sleep "${JAXSEG_RETRY_SECONDS:-30}"
done
exit "$code"
