"""Servers that make videos, as a source of candidates."""
