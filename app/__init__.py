"""The application: what turns a configuration into a run."""
