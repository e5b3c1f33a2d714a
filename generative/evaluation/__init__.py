"""How near generated audio is to real audio."""
