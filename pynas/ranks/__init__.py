"""Processes that a launcher (srun, mpirun, torchrun) started as one program: who they are, and what becomes of them."""
