"""Real data sets, and who holds which of their examples."""
