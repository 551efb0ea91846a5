# Sourced by the batch scripts: what a shell on your cluster needs before `pynas` runs. Edit it once for your cluster.
#
# module load python/3.11 cuda/12.8 mpich        # your cluster's modules, the MPI that mpi4py was built with among them
# export PYNAS_MPI=pmix                          # how srun starts MPI programs: pmi2 for MPICH, pmix for Open MPI
# export GLOO_SOCKET_IFNAME=ib0                  # the network interface between nodes, where the default is a slow one

# The environment that pynas is installed in: PYNAS_VENV, else .venv in the directory that sbatch was called in.
venv="${PYNAS_VENV:-${SLURM_SUBMIT_DIR:-$PWD}/.venv}"
if [ -f "$venv/bin/activate" ]; then
    . "$venv/bin/activate"
fi

export PYNAS_MPI="${PYNAS_MPI:-pmi2}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"

if ! command -v pynas >/dev/null; then
    echo "slurm/env.sh: no pynas on this node; set PYNAS_VENV to its virtual environment or edit slurm/env.sh" >&2
    exit 2
fi
