"""Tables, figures and one HTML page per run, made of the files that a run left behind and of nothing else."""
