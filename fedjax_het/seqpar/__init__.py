"""Sequence parallelism that adapts to the lengths of a batch: plan and run."""
