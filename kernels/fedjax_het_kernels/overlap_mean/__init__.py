"""Means over the clients that hold a row or block (structured pruning)."""
