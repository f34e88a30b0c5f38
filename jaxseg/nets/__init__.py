"""What is learned: Linen modules and nothing else."""
