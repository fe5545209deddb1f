"""Unequal devices: how fast, how large, how often online."""
