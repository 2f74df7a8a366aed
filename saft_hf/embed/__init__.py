"""Tokens to hidden states: planned batches, first layers only, on any number of processes, kept on disk."""
