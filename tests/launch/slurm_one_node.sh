#!/usr/bin/env bash
# A Slurm of one machine, for tests/launch/test_slurm_real.py. As root:
#
#   tests/launch/slurm_one_node.sh start     one node, this machine
#   tests/launch/slurm_one_node.sh start 2   two nodes n1, n2, both this machine
#   tests/launch/slurm_one_node.sh stop
#
# `start` installs slurm-wlm and munge from Debian where they are missing and
# prints the line that lets a shell find it. All its files are in $folder, but
# for the names of the nodes in /etc/hosts.
set -euo pipefail

folder=${JAXSEG_SLURM_DIR:-/var/tmp/jaxseg-slurm}
mark='# jaxseg test nodes'

die() {
  echo "slurm_one_node.sh: $*" >&2
  exit 1
}

install_slurm() {
  command -v slurmctld >/dev/null && command -v munged >/dev/null && return
  command -v apt-get >/dev/null ||
    die 'slurmctld is missing, and so is apt-get; install slurm and munge.'
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q slurm-wlm munge
}

start_munge() {
  munge -n 2>/dev/null | unmunge >/dev/null 2>&1 && return
  if [ ! -s /etc/munge/munge.key ]; then
    (umask 077 && head -c 1024 /dev/urandom >/etc/munge/munge.key)
  fi
  install -d -o munge -g munge -m 755 /run/munge
  chown munge:munge /etc/munge /etc/munge/munge.key /var/l*/munge
  runuser -u munge -- munged
  echo munged >>"$folder/started"
  sleep 1
  munge -n | unmunge >/dev/null || die 'munge does not work.'
}

# One line per node; the first argument is their number.
node_lines() {
  if [ "$1" = 1 ]; then
    echo "NodeName=$(hostname -s) CPUs=$(nproc) State=UNKNOWN"
    return
  fi
  for ((i = 1; i <= $1; i++)); do
    echo "NodeName=n$i NodeHostname=$(hostname -s) Port=$((17000 + i))" \
      "CPUs=$(nproc) State=UNKNOWN"
    echo "127.0.0.1 n$i $mark" >>/etc/hosts
  done
}

write_config() {
  # Requeued jobs wait for the credential to expire: 120 s unless told.
  cat >"$folder/slurm.conf" <<EOF
ClusterName=jaxseg
SlurmctldHost=$(hostname -s)
AuthType=auth/munge
AuthInfo=cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=20
SchedulerParameters=sched_interval=2,sched_min_interval=0
$(node_lines "$1")
PartitionName=test Nodes=ALL Default=YES OverSubscribe=FORCE:4 MaxTime=60 State=UP
EOF
  cat >"$folder/cgroup.conf" <<EOF
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
EOF
}

start() {
  [ "$(id -u)" = 0 ] || die 'needs root.'
  install_slurm
  getent hosts "$(hostname -s)" >/dev/null ||
    echo "127.0.0.1 $(hostname -s) $mark" >>/etc/hosts
  install -d -m 755 "$folder" "$folder/state"
  start_munge
  write_config "$1"
  export SLURM_CONF=$folder/slurm.conf
  slurmctld
  awk -F'[= ]' '/^NodeName/ {print $2}' "$SLURM_CONF" | while read -r node; do
    install -d -m 755 "$folder/spool.$node"
    slurmd -N "$node"
  done
  for ((i = 0; i < 60; i++)); do
    if [ "$(sinfo -h -t idle -o %D)" = "$1" ]; then
      echo "export SLURM_CONF=$SLURM_CONF"
      return
    fi
    sleep 0.5
  done
  sinfo -N -l >&2
  die "the nodes did not come up; see the logs in $folder."
}

stop() {
  # The controller first: it would ask the nodes for their jobs again.
  for file in "$folder"/slurmctld.pid "$folder"/slurmd.*.pid; do
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || continue
    for ((i = 0; i < 40; i++)); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.25
    done
  done
  if grep -qs munged "$folder/started"; then
    kill "$(cat /run/munge/munged.pid)" 2>/dev/null || true
  fi
  # /etc/hosts may be a mount of its own, which cannot be replaced.
  kept=$(grep -v "$mark" /etc/hosts) && echo "$kept" >/etc/hosts
  rm -rf "$folder"
}

case "${1:-}" in
  start) start "${2:-1}" ;;
  stop) stop ;;
  *) die 'usage: slurm_one_node.sh start [nodes] | stop' ;;
esac
