#!/usr/bin/env bash
# Two machines with two workers each: sbatch slurm.sh
#
# srun starts one launcher on each machine. It finds its place in SLURM_NODEID and makes TF_CONFIG from the hosts' names.
# When a worker is lost its launcher ends, and --kill-on-bad-exit ends the others; the job is put into the queue again and
# goes on from the last checkpoint. The run folder must lie on a file system that all machines share.
#
# TensorFlow's servers listen on all interfaces and ask nobody who they are: use a private network.
#SBATCH --job-name=digits
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@90
set -u

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd,)
srun --kill-on-bad-exit=1 \
  tftoolkit launch --workers=2 --hosts="$hosts" --port=$((20000 + SLURM_JOB_ID % 10000)) -- \
  train digits --directory=runs/digits
code=$?
# Wrong usage (2) is not tried again, and nothing is for ever.
[ $code -eq 0 ] || [ $code -eq 2 ] || [ "${SLURM_RESTART_COUNT:-0}" -ge 20 ] || scontrol requeue "$SLURM_JOB_ID"
exit $code
