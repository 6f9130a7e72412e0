"""The dry run: what is done, what is to do, and what it takes."""
