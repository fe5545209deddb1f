"""Dense sums of sparse uploads."""
