"""What ``train_throughput.py`` and ``scaling.py`` are made of: models with random weights, arms, measuring, drawing."""
