#!/bin/bash -l
# frontier-22b.base-1832c686: 64 ranks, 8 nodes of frontier, by `isoflop render`.

#SBATCH --job-name=frontier-22b.base-1832c686
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
#SBATCH --export=NONE
#SBATCH --partition=batch
#SBATCH --constraint=nvme
#SBATCH --network=disable_rdzv_get
#SBATCH --time=02:00:00
#SBATCH --nodes=8
#SBATCH --ntasks=64
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=7

run=runs/frontier-22b/base-1832c686
python=.venv/bin/python
umask 077
say() { printf '%s %s\n' "$(date +%FT%T)" "$*"; }
say "job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}, on $SLURM_JOB_NODELIST"

module load PrgEnv-gnu/8.7.0
module load cpe/26.03
module load rocm/7.1.1
module load rccl-net-plugin
module load craype-accel-amd-gfx90a
module load miniforge3
export MPICH_GPU_SUPPORT_ENABLED=1
export HDF5_USE_FILE_LOCKING=BEST_EFFORT
export MIOPEN_USER_DB_PATH=/tmp/isoflop-miopen
export MIOPEN_CUSTOM_CACHE_DIR=/tmp/isoflop-miopen
export NCCL_CROSS_NIC=1
export NCCL_NET_GDR_LEVEL=PHB
export NCCL_SOCKET_IFNAME=hsn0,hsn1,hsn2,hsn3
export HSA_FORCE_FINE_GRAIN_PCIE=1
export FI_MR_CACHE_MONITOR=kdreg2
export FI_CXI_DISABLE_HOST_REGISTER=1
export FI_CXI_DEFAULT_CQ_SIZE=131072
export FI_CXI_DEFAULT_TX_SIZE=2048
export FI_CXI_RDZV_PROTO=alt_read
export FI_CXI_RDZV_EAGER_SIZE=0
export FI_CXI_RDZV_THRESHOLD=0
export FI_CXI_RDZV_GET_MIN=0
export FI_CXI_RX_MATCH_MODE=hybrid
export NCCL_NET=OFI
export ISOFLOP_WORLD_SIZE=64
case $python in */*) export PATH=${python%/*}:$PATH ;; esac

# The run's directory, its exact configuration, and the number of this attempt.
mkdir -p -- "$run/checkpoints" || exit 2
cat >"$run/.run.yaml.$SLURM_JOB_ID" <<'END_OF_RUN_YAML' || exit 2
id: base-1832c686
study: frontier-22b
workflow: llm
site: frontier
gpus:
  node_gpus: 8
  gpu_of_l3:
  - 4
  - 5
  - 2
  - 3
  - 6
  - 7
  - 0
  - 1
  cores_of_l3: 8
gemm_peak_flops_per_s: 191500000000000.0
held_out: false
cache_dir: runs/.data
config:
  model:
    arch: gpt
    width: 6144
    layers: 48
    head_width: 128
    kv_heads: null
    ffn_width: null
    seq_len: 2048
    vocab_size: 50688
    tied_head: true
    rope_theta: 10000.0
    norm_eps: 1.0e-05
    experts: 0
    top_k: 2
    capacity: null
    bias_rate: 0.001
    init_from: null
  data:
    source: stdlib
    tokenizer: byte
    mask_documents: false
    validation_fraction: 0.05
    seed: 0
  optimizer:
    lr: 6.0e-05
    lr_width_power: 0.0
    min_lr_ratio: 0.1
    schedule: cosine
    warmup_fraction: 0.05
    decay_fraction: 0.2
    beta1: 0.9
    beta2: 0.95
    eps: 1.0e-08
    weight_decay: 0.1
    grad_clip: 1.0
  train:
    tokens: 1000000000
    flops: null
    steps: null
    global_batch: 640
    evaluations: 5
    evaluation_sequences: 256
    log_every: 10
    checkpoint_every: 500
    async_checkpoint: true
    skip_nonfinite: 0
    seed: 0
    dtype: bf16
    compile: false
  parallel:
    tp: 2
    pp: 8
    cp: 1
    ep: 1
    order:
    - dp
    - pp
    - cp
    - tp
    zero: 1
    replicas: 1
    microbatch: 1
    schedule: 1f1b
    stages_per_rank: 1
    recompute: full
    backend: nccl
    timeout_s: 600.0
END_OF_RUN_YAML
mv -- "$run/.run.yaml.$SLURM_JOB_ID" "$run/run.yaml" || exit 2
attempt=1
name() { printf '%s/attempt-%03d.out' "$run" "$attempt"; }
while out=$(name); [ -e "$out" ]; do attempt=$((attempt + 1)); done
exec 8>>"$out" 9>>"${out%.out}.err" || exit 2
flock --nonblock 8  # held for as long as anyone can still write: the run is seen to be alive

committed() { find "$run/checkpoints" -maxdepth 1 -name 'step-*' 2>/dev/null | sort | tail -n 1; }
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then  # MPICH would take up what killed ranks of this job left
  stale='for file in /dev/shm/mpich_shm_*; do grep -qsF "$file" /proc/[0-9]*/maps || rm -f "$file"; done'
  srun --nodes=8 --ntasks=8 --ntasks-per-node=1 --export=ALL bash -c "$stale"
fi
before=$(committed)
warned=0 step= late=
warn() {
  warned=1 again=1
  say 'the walltime is near'
  [ -z "$step" ] || kill -USR1 "$step"
  # Ranks that are deaf to it, as MPICH makes a program without a handler, are ended while there is time.
  { sleep 200; kill -TERM "$step"; } 8>&- 9>&- &
  late=$!
}
trap warn USR1
say "attempt $attempt starts: ${out%.out}.{out,err}"
srun -N 8 -n 64 --ntasks-per-node=8 -c7 --gpus-per-task=1 --gpu-bind=closest --export=ALL,OMP_NUM_THREADS=7 --kill-on-bad-exit=1 "$python" -m mpi4py -m workflows.llm.program "$run" --attempt "$attempt" >&8 2>&9 &
step=$!
again=1; while [ "$again" = 1 ]; do again=0; wait "$step"; code=$?; done  # a signal cuts a wait short
[ -z "$late" ] || kill "$late" 2>/dev/null
exec 8>&- 9>&-
# The ranks' own word goes before srun's, which says 137 when one rank has ended the others.
word=$(sed -n 's/^{"code": \([0-9]*\),.*/\1/p' "${out%.out}.exit.json" 2>/dev/null)
code=${word:-$code}
say "attempt $attempt ended with code $code"

# 75 asks for another attempt; ranks that had to be ended after the warning go on from their last checkpoint.
if [ "$code" -eq 75 ] || { [ "$warned" = 1 ] && [ "$code" -gt 128 ]; }; then
  idle=0
  if read -r owner count <"$run/restarts" && [ "$owner" = "$SLURM_JOB_ID" ]; then idle=$count; fi 2>/dev/null
  if [ "$(committed)" != "$before" ]; then idle=0; else idle=$((idle + 1)); fi
  if [ "$idle" -gt 3 ]; then
    say "giving up: 3 restarts without a new checkpoint"
  else
    echo "$SLURM_JOB_ID $idle" >"$run/restarts"
    say "requeueing the job"
    scontrol requeue "$SLURM_JOB_ID" || say "the scheduler does not requeue it; submit it again"
  fi
fi
exit "$code"
