"""Starts a training on several processes: one machine, Slurm, TPUs, GKE."""
