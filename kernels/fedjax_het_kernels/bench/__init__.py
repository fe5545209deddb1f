"""Times every op against other ways to compute the same.

python -m fedjax_het_kernels.bench [--op sign_votes] [--spec million]

ops.py      what is timed: each op's shapes, rivals and reference
measure.py  one variant: checked, warmed up, timed
report.py   JSON, tables and the plot against the device's copy bandwidth
"""
