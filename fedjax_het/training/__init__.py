"""Host side: checkpoints, metrics, progress, the loop, statistics, reports.

Nothing is imported here: orbax, rich and matplotlib cost seconds, and most
programs need one of them.
"""
