"""Signs and bits in planar words, and back."""
