"""Forms: what a multimodal model is asked about videos, and how its answer is read.

One file a family. A form builds a turn and reads a reply; it knows of no model, and every form goes
with every model. Reading is strict: what is not exactly an answer is unreadable, never a default.
"""
