"""The laboratory: what runs, stores, judges and draws the experiments. It imports the library, never the reverse."""
