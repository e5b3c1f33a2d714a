"""Training of both families."""
