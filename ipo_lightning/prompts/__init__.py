"""Prompt sets: read by split, composed of words by category, cleared of near-duplicates."""
