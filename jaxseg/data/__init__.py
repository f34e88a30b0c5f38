"""From files to batches: sources, splits, augmentation, the pipeline."""
