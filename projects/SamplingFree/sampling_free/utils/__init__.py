"""What every room may use: errors, files, processes, random seeds, signals."""
