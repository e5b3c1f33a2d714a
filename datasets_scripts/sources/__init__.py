"""Where clips come from: corpora, downloads, archives, tables, trees of files."""
