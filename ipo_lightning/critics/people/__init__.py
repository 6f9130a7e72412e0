"""People as critics: the page that asks them, their answers, tables of their labels."""
