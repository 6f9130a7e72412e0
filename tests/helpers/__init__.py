"""Tiny models, servers and browsers that tests share."""
