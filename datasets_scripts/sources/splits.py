"""Names of splits."""

# What the names of splits begin with, under the names that `datasets` gives to them.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def split_of(word: str) -> str | None:
    """The split that a word stands for, in any case; None if it stands for none."""
    return next((name for name, words in SPLIT_WORDS.items() if word.lower() in words), None)
