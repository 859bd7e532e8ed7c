"""Networks that others trained: where their weights come from, how files of them are read, and how they are built."""
