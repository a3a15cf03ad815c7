"""Documents and questions to train on, made up by chance: natural English, and always the same for a seed."""
