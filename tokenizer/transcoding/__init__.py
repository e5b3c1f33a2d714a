"""Audio files and pipes to code files and back."""
