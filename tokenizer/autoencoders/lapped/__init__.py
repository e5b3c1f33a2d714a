"""The bundled autoencoder: a lapped transform with networks around it."""
