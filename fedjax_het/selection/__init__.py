"""Who trains this round."""

from fedjax_het.selection._uniform import check_cohort_size, uniform

__all__ = ["check_cohort_size", "uniform"]
