"""What critics with downloaded weights share: loading, viewing, wording."""
