"""People as annotators: the page that asks them, and what they answered."""
