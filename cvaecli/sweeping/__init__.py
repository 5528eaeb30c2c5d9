"""Many trainings from one command: ``plan`` says which, ``queue`` hands them out through Optuna."""
