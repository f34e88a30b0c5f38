"""Slurm: a batch script and the command that submits it."""
