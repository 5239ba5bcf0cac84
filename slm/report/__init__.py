"""Self-contained HTML pages: one for a run, one for a study. They read files, and know nothing of slm's objects."""
