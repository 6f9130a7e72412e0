"""Prompt templates: what a VLM is asked about videos, and how its answer is read.

One file a family of templates. A template makes a turn and reads a reply; it depends on no model,
and works with every VLM client. Reading is strict: an answer in another format is unreadable, and
never replaced by a default.
"""
