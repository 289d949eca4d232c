"""A made-up data set of any size: simple shapes on noise, with boxes and masks."""
