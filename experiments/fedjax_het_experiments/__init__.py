"""Experiment binaries, one published claim each; run with `fedjax-het NAME`."""
