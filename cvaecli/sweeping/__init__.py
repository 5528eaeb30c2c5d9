"""Many trainings from one command: ``plan`` lists them, ``queue`` assigns them to workers through Optuna."""
