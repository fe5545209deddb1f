"""Who trains this round."""

from fedjax_het.selection._uniform import uniform as uniform
