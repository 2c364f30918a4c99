#!/usr/bin/env bash
# A Slurm cluster of two nodes on this machine: slurm.sh start FOLDER | node FOLDER n1 | stop FOLDER
#
# munged, slurmctld and two slurmd with names and ports of their own, all as the user who calls it.
# FOLDER gets their configuration, keys, states and logs. Afterwards:
#   export SLURM_CONF=FOLDER/slurm.conf
# Debian and Ubuntu have it as: apt-get install slurm-wlm munge
set -euo pipefail
verb="$1" folder="$2"
export SLURM_CONF="$folder/slurm.conf"

configure() {
  local base=$((20000 + RANDOM % 10000)) host
  host="$(hostname -s)"
  mkdir -p "$folder/state"
  (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
  cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$base
# Tests find a job's processes by its number: clusters side by side need numbers of their own.
FirstJobId=$((base + 5000))
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for as long as a credential lives: by default two minutes.
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
# A busy machine may keep a slurmd from answering for ten seconds: its node would count as dead.
SlurmdTimeout=20
MessageTimeout=30
KillWait=20
# A run that was told to save may take longer on a busy machine than what is left of a minute.
OverTimeLimit=1
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((base + 1))-$((base + 2))] CPUs=4 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
}

case "$verb" in
start)
  mkdir -p "$folder"
  configure
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
    --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
  slurmctld -c
  for node in n1 n2; do slurmd -N "$node"; done
  for _ in $(seq 240); do
    sinfo --noheader --format=%T 2>/dev/null | grep -qx idle && exit 0
    sleep 0.5
  done
  echo "no idle node within two minutes; see $folder/*.log" >&2
  exit 1
  ;;
node)
  slurmd -N "$3"
  ;;
stop)
  scancel --me --full --signal=KILL 2>/dev/null || true
  scancel --me 2>/dev/null || true
  for _ in $(seq 40); do # a slurmd that has ended could not end its jobs any more
    [ -z "$(squeue --me --noheader 2>/dev/null)" ] && break
    sleep 0.5
  done
  for name in slurmd.n1 slurmd.n2 slurmctld munged; do
    [ -f "$folder/$name.pid" ] && kill "$(cat "$folder/$name.pid")" 2>/dev/null || true
  done
  ;;
*)
  echo "slurm.sh: $verb: expected start, node or stop" >&2
  exit 2
  ;;
esac
