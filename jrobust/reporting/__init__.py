"""Tables, figures and one HTML page per run, made from result files only."""
