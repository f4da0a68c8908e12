"""The embedded set: pictures drawn from a seed, with labels and masks, hard in the way that weak supervision is hard."""
