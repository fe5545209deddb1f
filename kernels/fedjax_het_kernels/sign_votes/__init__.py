"""Weighted votes over packed signs."""
