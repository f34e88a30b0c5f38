"""XManager: sweeps of trainings, here or in the cloud."""
