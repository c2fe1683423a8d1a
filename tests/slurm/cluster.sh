#!/usr/bin/env bash
# A real Slurm of several nodes on this machine, for as long as it is needed. Wants root, slurm-wlm and munge.
#
#   cluster.sh start DIR [NODES]    daemons whose every file is in DIR; afterwards `export SLURM_CONF=DIR/slurm.conf`
#   cluster.sh stop  DIR            cancels its jobs and ends exactly the daemons that were started in DIR
#   cluster.sh lose  DIR NODE       kills a node's daemon and all of its processes at once
#   cluster.sh boot  DIR NODE       starts a node's daemon
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
verb=${1:?start, stop, lose or boot} dir=$(mkdir -p "${2:?directory}" && cd "$2" && pwd)
export SLURM_CONF=$dir/slurm.conf

free_ports() {  # the first of $1 neighbouring ports on which nobody listens
  local first port busy
  while first=$((20000 + RANDOM % 10000)) busy=; do
    for ((port = first; port < first + $1; port++)); do
      if (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then busy=1; fi
    done
    [ "$busy" ] || { echo "$first"; return; }
  done
}

configure() {  # $1 nodes
  local port gpu
  port=$(free_ports $(($1 + 1)))
  mkdir -p "$dir/dev" "$dir/state"
  for gpu in {0..7}; do [ -e "$dir/dev/gpu$gpu" ] || mknod "$dir/dev/gpu$gpu" c 1 3; done  # a null device is a device
  echo "NodeName=n[1-$1] Name=gpu Type=fake Flags=nvidia_gpu_env,amd_gpu_env File=$dir/dev/gpu[0-7]" >"$dir/gres.conf"
  cat >"$SLURM_CONF" <<CONF
ClusterName=loopback
SlurmctldHost=localhost
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool.%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
SlurmdParameters=config_overrides
GresTypes=gpu
MpiDefault=pmi2
JobCompType=jobcomp/filetxt
JobCompLoc=$dir/jobs.txt
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
SlurmdTimeout=10
KillWait=3
MinJobAge=3600
ReturnToService=2
JobRequeue=1
EnforcePartLimits=ALL
NodeName=n[1-$1] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + $1))] CPUs=8 RealMemory=8000 Gres=gpu:fake:8
PartitionName=batch Nodes=ALL Default=YES MaxTime=2:00:00 State=UP
CONF
}

boot() {  # $1 node; a /dev/shm and a host name of its own make it a machine in the eyes of MPI
  mkdir -p "$dir/spool.$1"
  unshare --uts --mount bash -ec '
    hostname "$1"; mount --bind "$2/hosts" /etc/hosts; mount -t tmpfs tmpfs /dev/shm; exec slurmd -N "$1"' - "$1" "$dir"
}

family() {  # $1 pid: it and all that came from it
  local child
  echo "$1"
  for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do family "$child"; done
}

lose() {  # $1 node
  local doomed step
  doomed=$(family "$(cat "$dir/slurmd.$1.pid")")
  for step in /proc/[0-9]*; do  # slurmstepd leaves its parent, but keeps files of its node open
    [ "$(cat "$step/comm" 2>/dev/null)" = slurmstepd ] || continue
    if readlink "$step"/fd/* 2>/dev/null | grep -qE "^$dir/(slurmd|spool)\.$1(\.|/|$)"; then
      doomed+=" $(family "${step#/proc/}")"
    fi
  done
  kill -KILL $doomed 2>/dev/null || true
  rm -f "$dir/slurmd.$1.pid"
}

idle() { sinfo --noheader --states=idle --format=%D 2>/dev/null | awk '{n += $1} END {print n + 0}'; }

start() {  # $1 nodes
  local n
  configure "$1"
  { echo "127.0.0.1 localhost $(hostname)"; for ((n = 1; n <= $1; n++)); do echo "127.0.0.1 n$n"; done; } >"$dir/hosts"
  dd if=/dev/urandom of="$dir/munge.key" bs=128 count=1 status=none
  chmod 400 "$dir/munge.key"
  munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munge.seed"
  slurmctld
  for ((n = 1; n <= $1; n++)); do boot "n$n"; done
  for ((n = 0; n < 300; n++)); do
    [ "$(idle)" = "$1" ] && return
    sleep 0.1
  done
  sinfo >&2 || true
  tail -n 5 "$dir"/*.log >&2
  echo "cluster.sh: $1 nodes did not become idle in 30 s" >&2
  return 1
}

stop() {
  local file pid pids=() _
  timeout 5 scancel --user=root 2>/dev/null || true
  for _ in {1..50}; do [ "$(timeout 5 squeue --noheader 2>/dev/null)" ] || break; sleep 0.1; done
  for file in "$dir"/slurmd.*.pid "$dir/slurmctld.pid" "$dir/munged.pid"; do
    [ -e "$file" ] || continue
    pid=$(cat "$file")
    if kill "$pid" 2>/dev/null; then pids+=("$pid"); fi
  done
  for _ in {1..100}; do
    [ ${#pids[@]} -gt 0 ] && kill -0 "${pids[@]}" 2>/dev/null || break
    sleep 0.1
  done
  for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
  rm -f "$dir"/*.pid
}

case $verb in
  start) start "${3:-4}" ;;
  stop) stop ;;
  lose | boot) "$verb" "${3:?node}" ;;
  *) echo "cluster.sh: $verb? There is start, stop, lose, boot" >&2; exit 2 ;;
esac
