#!/usr/bin/env bash
# One run on one machine or several, with a process on every GPU. Start it on each machine, or let Slurm do so:
#
#   examples/launch.sh recipe.yaml parallel=fsdp                                    one machine
#   NODES=2 NODE=0 HEAD=first.host examples/launch.sh recipe.yaml                   on each of two, NODE=0 and NODE=1
#   sbatch --nodes=4 --ntasks-per-node=1 --gpus-per-node=8 --signal=TERM@120 --wrap='srun examples/launch.sh recipe.yaml'
#
# A run that has a checkpoint is continued: start it again after a failure, on the same number of machines or another.
set -euo pipefail
: "${1:?give a recipe, and settings after it}"

nodes=${NODES:-${SLURM_NNODES:-1}}
node=${NODE:-${SLURM_NODEID:-0}}
port=${PORT:-29500}
head=${HEAD:-127.0.0.1}
if [ -z "${HEAD:-}" ] && [ -n "${SLURM_JOB_NODELIST:-}" ]; then
    head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
fi
gpus=$(nvidia-smi -L 2>/dev/null | wc -l || true)
processes=${PROCESSES:-$((gpus > 0 ? gpus : 1))}

settings=()
for word in "${@:2}"; do [[ $word == -* || $word != *=* ]] || settings+=("$word"); done
directory=$(python -c '
import sys
from vpretrain import UserError, load_recipe
try:
    print(load_recipe(sys.argv[1], sys.argv[2:]).directory)
except UserError as error:
    print(f"vpretrain: {error}", file=sys.stderr)
    sys.exit(2)' "$1" ${settings[@]+"${settings[@]}"})
resume=()
if compgen -G "$directory/checkpoints/step-*" >/dev/null; then resume=(--resume); fi

exec torchrun --nnodes "$nodes" --node-rank "$node" --nproc-per-node "$processes" \
    --master-addr "$head" --master-port "$port" -m vpretrain run "$@" "${resume[@]}"
