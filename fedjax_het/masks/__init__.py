"""What is kept, which sign it has, how it is packed."""
