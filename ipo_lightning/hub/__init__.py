"""Policies in and out: checkpoints by any name, model cards, uploads."""
