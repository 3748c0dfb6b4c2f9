"""Stage 1: strings and arrays in, candidate rows out."""
