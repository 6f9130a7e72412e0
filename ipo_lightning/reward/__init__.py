"""Training a critic on human labels."""
