"""Prepared datasets: shards, manifest, card, verification, batches."""
