"""What critics with downloaded weights share: checkpoints, frames, prompt texts."""
