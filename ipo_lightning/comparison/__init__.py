"""A paired comparison of two policies: figures, tables and a page, from their evaluation videos."""
