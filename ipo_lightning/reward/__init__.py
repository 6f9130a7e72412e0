"""Training a critic on people's labels."""
