"""People as critics: the page that asks them, their answers, and the format of their labels."""
