"""Critics made of other critics: ensembles and adapters."""
