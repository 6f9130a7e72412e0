"""VBench: dimensions as critics and metrics, videos for the official suite, and its scores."""
