"""Stage 2: frames in, ordered frames out."""
