"""One file per paper and data set; each docstring is a claim: command, hardware, duration, published numbers."""
