"""What a step trains on: labels, timesteps and noise seeds, and the reference errors of each."""
