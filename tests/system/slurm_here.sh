#!/usr/bin/env bash
# A Slurm of one node and one partition on this machine, without accounting, for tests of launcher=slurm.
#   sudo bash tests/system/slurm_here.sh         installs Debian's packages if they are missing, starts the daemons
#   sudo bash tests/system/slurm_here.sh stop    stops them
# It has no GPUs, so give: hydra.launcher.gpus_per_node=null hydra.launcher.cpus_per_task=1 hydra.launcher.mem_gb=4
set -euo pipefail

daemons=(slurmd slurmctld munged)
if [[ ${1:-start} == stop ]]; then
    for name in "${daemons[@]}"; do pkill -x "$name" || true; done
    exit
fi

if ! command -v slurmctld > /dev/null; then
    apt-get update --quiet
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet slurm-wlm munge
fi
node=$(hostname --short)
mkdir -p /etc/slurm /var/spool/slurm/{state,node} /run/munge
chown munge: /run/munge
cat > /etc/slurm/slurm.conf << CONF
ClusterName=here
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
StateSaveLocation=/var/spool/slurm/state
SlurmdSpoolDir=/var/spool/slurm/node
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(($(grep -oP 'MemTotal: *\K\d+' /proc/meminfo) * 9 / 10240))
PartitionName=here Nodes=$node Default=YES State=UP
CONF
pgrep -x munged > /dev/null || runuser --user munge -- munged
slurmctld
slurmd
sleep 2
sinfo
