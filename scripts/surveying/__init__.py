"""Parts of `scripts/survey-models`: types, trials of one model, isolated processes, and the table with its reasons."""
