"""Video files of anybody, opened and decoded by PyAV: one answer for whoever reads them."""
