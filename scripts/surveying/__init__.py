"""The parts of `scripts/survey-models`: which model types give `model.generate`'s tokens in our batches."""
